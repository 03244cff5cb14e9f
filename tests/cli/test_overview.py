"""``plimsoll`` alone, and what a first start says."""

import re
import subprocess
import sys


def test_plimsoll_alone_says_what_it_is_and_how_to_begin(plimsoll, no_server):
    done = plimsoll("--url", no_server)
    assert (done.returncode, done.stderr) == (0, "")
    assert "No Plimsoll server answers" in done.stdout
    assert "plimsoll serve" in done.stdout
    assert "plimsoll --help" in done.stdout


def test_plimsoll_alone_says_where_the_server_is_and_what_it_has_loaded(plimsoll, url):
    plimsoll("load", "echo", "--url", url)
    told = plimsoll("--url", url).stdout
    assert f"A server runs at {url} (healthy)" in told
    assert re.search(r"\d+ models, .*echo \(.*\).* loaded", told)


def test_a_wrong_configuration_is_said_and_no_stack_trace(shell, plimsoll, tmp_path):
    done = plimsoll("--config", shell.write(tmp_path, {"server": {"port": 70000}}))
    assert done.returncode == 0
    assert "server.port: 70000 is not allowed" in done.stdout


def test_the_overview_needs_no_import_of_the_server():
    code = "import sys, plimsoll.cli.overview; sys.exit(str({'sanic', 'pykka', 'mlx'} & set(sys.modules) or 0) != '0')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_start_says_in_five_lines_what_to_do_next():
    from plimsoll.http.server import _next_steps

    lines = _next_steps("http://127.0.0.1:11435", ["m"])
    assert len(lines) == 5
    assert lines[0].startswith("curl -sN http://127.0.0.1:11435/v1/chat/completions")
    assert all(len(line) <= 250 for line in lines)
