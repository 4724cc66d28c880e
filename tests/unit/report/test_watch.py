"""The live view's server: the newest page, to this machine alone, and as often as the files change."""

import http.client
import json
import threading
from collections.abc import Iterator

import pytest
from reported import write_run

from verl_ext.report.files import RunFiles
from verl_ext.report.single import report_of
from verl_ext.report.watch import Server, server_of
from verl_ext.report.written import write


@pytest.fixture
def served(tmp_path) -> Iterator[Server]:
    folder = write_run(tmp_path / "run")
    server = server_of(folder, lambda: write(report_of(RunFiles(folder), []), folder, live=True), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(server: Server, path: str, host: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{server.server_address[1]}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_a_page_is_new_when_a_file_has_changed(served, tmp_path):
    status, page = get(served, "/")
    assert status == 200
    assert "connect-src &#39;self&#39;" in page
    assert '<html lang="en" data-live>' in page
    assert 'id="live"' in page
    first = get(served, "/stamp")[1]
    assert get(served, "/stamp")[1] == first
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 17, "teacher_kl": 0.001, "training/total_steps": 20}) + "\n")
    assert get(served, "/stamp")[1] != first
    assert "0.001 at step 17" in get(served, "/")[1]
    written = (tmp_path / "run/report.html").read_text()
    assert "0.001 at step 17" in written
    assert "connect-src" not in written
    assert 'id="live"' not in written


def test_a_page_of_elsewhere_cannot_read_ours(served):
    port = served.server_address[1]
    assert served.server_address[0] == "127.0.0.1"
    assert get(served, "/", f"evil.example:{port}") == (403, "ask for 127.0.0.1")
    assert get(served, "/", f"localhost:{port}")[0] == 200
    assert get(served, "/../config.yaml")[0] == 404


def test_a_file_that_cannot_be_read_leaves_the_page_as_it_was(served, tmp_path, capsys):
    page = get(served, "/")[1]
    stamp = get(served, "/stamp")[1]
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write("no json\n")
    assert get(served, "/")[1] == page
    assert get(served, "/stamp")[1] == stamp
    assert capsys.readouterr().out.count("the page stays as it was") == 1


def test_a_port_that_is_taken_is_named(served, tmp_path):
    port = served.server_address[1]
    with pytest.raises(ValueError, match=f"^port={port} cannot be listened on"):
        server_of(tmp_path, str, port)
