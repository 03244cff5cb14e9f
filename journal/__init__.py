"""The journal: every memory action as one event, written to the log, kept in the black box, sent to subscribers."""
