"""The journal: every memory action as one event, told to the log, kept in the black box, passed on to who listens."""
