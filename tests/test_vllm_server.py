"""A vLLM server is awaited, or told how to start; vLLM's engine gets the run's type and seed."""

import functools
import http.server
import shlex
import sys
import threading
from types import SimpleNamespace

import pytest
from conftest import parser, settings
from test_machine import TINY
from trl import GRPOConfig, ModelConfig

from r1zero.preflight import check as checks
from r1zero.preflight import hardware
from r1zero.training import vllm as vllm_settings


def values(*flags):
    """Every setting of a recipe that generates with a server."""
    return settings("--use_vllm", "true", "--vllm_mode", "server", *flags, config=TINY)


@pytest.fixture
def server(tmp_path):
    """URL of a server on this machine whose pages are the files of tmp_path."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as started:
        threading.Thread(target=started.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{started.server_port}"
        started.shutdown()


TAKES = '{"vllm_config": {"weight_transfer_config": {"backend": "nccl"}}}'
TAKES_NONE = '{"vllm_config": {"weight_transfer_config": null}}'
NONE_ANSWERED = "no vLLM server answered at {} in 0 s (--vllm_server_timeout)"
NO_WEIGHTS = "the vLLM server at {} takes no new weights"
SERVERS = {  # {what: (its pages, why it stops a run)}
    "nobody": (None, NONE_ANSWERED),
    "one that answers otherwise": ({}, NONE_ANSWERED),
    "one without the development mode": ({"health": ""}, NO_WEIGHTS),
    "one without a transfer of weights": ({"health": "", "server_info": TAKES_NONE}, NO_WEIGHTS),
    "one that takes weights": ({"health": "", "server_info": TAKES}, None),
}


@pytest.mark.parametrize(("pages", "why"), SERVERS.values(), ids=SERVERS)
def test_server_that_is_no_use_stops_a_run_with_what_starts_one(server, tmp_path, capsys, pages, why):
    url = "http://127.0.0.1:9" if pages is None else server
    for name, text in (pages or {}).items():
        (tmp_path / name).write_text(text)
    given = values("--vllm_server_base_url", f"{url}/", "--vllm_server_timeout", 0)
    if why is None:
        hardware.await_server(given)
        assert capsys.readouterr().out == "", "nothing was waited for"
        return
    with pytest.raises(SystemExit) as ended:
        hardware.await_server(given)
    what, line = str(ended.value).splitlines()
    assert why.format(url) in what and f" {hardware.serve_command(given)}" in line


def test_server_that_comes_later_is_waited_for(monkeypatch, capsys):
    seconds = []
    monkeypatch.setattr(hardware.time, "sleep", seconds.append)
    monkeypatch.setattr(hardware, "answer", lambda url: (200, TAKES.encode()) if len(seconds) >= 3 else (None, b""))
    hardware.await_server(values())
    assert len(seconds) == 3
    assert capsys.readouterr().out == "waiting up to 240 s for a vLLM server at http://0.0.0.0:8000\n"


def test_it_is_waited_for_once_nothing_else_is_wrong(tmp_path, tiny_model, tiny_data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hardware, "vllm_errors", lambda *_: [])
    monkeypatch.setattr(checks.recipe, "build", lambda *_: (None, SimpleNamespace(), None))
    monkeypatch.setattr(checks, "late_errors", lambda *_: [])
    asked = []
    monkeypatch.setattr(hardware, "await_server", lambda values: asked.append(values.vllm_mode))
    argv = f"--config {TINY} --model_name_or_path {tiny_model} --use_vllm true --vllm_mode server".split()
    for flags in (["--data_dir", "nowhere"], ["--data_dir", str(tiny_data), "--dry_run"]):
        with pytest.raises(SystemExit):
            checks.check(parser(), [*argv, *flags])
    assert asked == []
    checks.check(parser(), [*argv, "--data_dir", str(tiny_data)])
    assert asked == ["server"]


def test_command_of_a_server_has_the_type_seed_and_address_of_the_run():
    """Its flags are those of TRL's own, which ends with 2.0; tests/test_vllm.py starts one."""
    flags = "--bf16 true --seed 7 --vllm_server_host 10.0.0.2".split()
    for given, expected in ((flags, ("bfloat16", "7", "10.0.0.2")), ([], ("float32", "0", "127.0.0.1"))):
        variable, *words = shlex.split(hardware.serve_command(values(*given)))
        assert variable == "VLLM_SERVER_DEV_MODE=1" and words[:3] == ["vllm", "serve", "models/tiny"]
        assert tuple(words[words.index(name) + 1] for name in ("--dtype", "--seed", "--host")) == expected
        assert {"--weight-transfer-config", "--logprobs-mode", "--max-logprobs"} <= set(words)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the engine of a process is built with, as a dict, for a run's settings."""

    def ask(group=0, **settings):
        # TRL asks for the engine by keywords, `seed` among them: the number of the tensor-parallel group
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **kwargs: kwargs))
        settings = {"use_cpu": True, "bf16": False, "output_dir": str(tmp_path)} | settings
        llm = vllm_settings.engine(GRPOConfig(**settings), ModelConfig(dtype="float32"))
        return llm(model="path", seed=group)

    return ask


def test_engine_has_the_updates_type_and_every_run_and_group_a_seed_of_its_own(asked):
    assert [asked(bf16=bf16)["dtype"] for bf16 in (True, False)] == ["bfloat16", "float32"]
    seeds = [asked(group, seed=run)["seed"] for run in (0, 1, 42) for group in (0, 1, 2, 63)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)  # what numpy takes
    assert seeds[0] == asked(0, seed=0)["seed"]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python counts no references to None there")
@pytest.mark.parametrize("sleeps", [True, False])
def test_none_outlives_an_allocator_that_takes_its_references(asked, monkeypatch, sleeps):
    monkeypatch.setattr(vllm_settings, "PLENTY", 1 << 30)
    before = sys.getrefcount(None)
    asked(use_vllm=True, vllm_enable_sleep_mode=sleeps)
    assert (sys.getrefcount(None) - before > 1 << 29) == sleeps
