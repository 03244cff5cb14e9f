"""``plimsoll chat``."""

import json

import pytest

FORKS = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")  # pty.fork, then exec


def test_chat_answers_one_prompt_from_the_option_or_a_pipe(plimsoll, url):
    assert plimsoll("chat", "echo", "--once", "hello there", "--url", url).stdout == "hello there\n"
    assert plimsoll("chat", "echo", "--url", url, given="hello you\n").stdout == "hello you\n"


def test_chat_takes_the_first_model_when_none_is_named(plimsoll, url):
    assert plimsoll("chat", "--once", "hello", "--url", url).stdout == "hello\n"


def test_chat_tells_the_server_s_error_in_one_line(shell, plimsoll, url):
    shell.fails(plimsoll("chat", "nope", "--once", "hi", "--url", url), 1, "nope")
    shell.fails(plimsoll("chat", "broken", "--once", "hi", "--url", url), 1, "the file is torn")


def test_chat_with_an_empty_pipe_is_wrong_usage(plimsoll, url):
    assert plimsoll("chat", "echo", "--url", url).returncode == 2


@FORKS
def test_chat_at_a_terminal_keeps_going_through_errors_resets_and_ctrl_c(shell, url):
    terminal = shell.Terminal("chat", "slow", "--url", url)
    terminal.shows("/exit")
    terminal.shows("> ")
    terminal.types("tell me\n")
    terminal.shows("word word")
    terminal.types("\x03")
    terminal.shows("> ")
    terminal.types("/what\n")
    terminal.shows("/reset")
    terminal.shows("> ")
    terminal.types("/reset\n")
    terminal.shows("> ")
    terminal.types("\x03")
    terminal.shows("> ")
    terminal.types("/exit\n")
    assert terminal.ends() == 0
    shell.until(lambda: shell.states(url)["slow"] != "busy", "Ctrl-C cancels the answer")


@FORKS
def test_a_ctrl_c_just_before_chat_waits_is_not_kept_for_the_next_line(shell, no_server, tmp_path, monkeypatch):
    # Once, after the first prompt: the flag that Ctrl-C sets, and no wait that it interrupts. No Python code may run
    # behind it, for that would see the flag.
    (tmp_path / "sitecustomize.py").write_text(
        "import _thread, functools, readline, signal\n"
        "presses = map(_thread.interrupt_main, [signal.SIGINT])\n"
        "readline.set_pre_input_hook(functools.partial(next, presses, None))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    terminal = shell.Terminal("chat", "echo", "--url", no_server)
    terminal.shows("> ")
    terminal.shows("/exit")
    terminal.shows("> ")
    terminal.types("/exit\n")
    assert terminal.ends() == 0


@FORKS
def test_chat_at_a_terminal_survives_a_failing_model_and_leaves_at_ctrl_d(shell, url):
    terminal = shell.Terminal("chat", "broken", "--url", url)
    terminal.shows("> ")
    terminal.types("hi\n")
    terminal.shows("the file is torn")
    terminal.shows("> ")
    terminal.types("\x04")
    assert terminal.ends() == 0


def test_chat_for_programs_is_one_object(plimsoll, url):
    done = plimsoll("chat", "echo", "--once", "hello there", "--json", "--url", url)
    assert json.loads(done.stdout) == {"model": "echo", "answer": "hello there"}
