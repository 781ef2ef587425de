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


def values(*flags, config=TINY):
    """Every setting of a recipe that generates with a server."""
    return settings("--use_vllm", "true", "--vllm_mode", "server", *flags, config=config)


@pytest.fixture
def server(tmp_path):
    """URL of a server on this machine whose pages are the files of tmp_path."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as started:
        threading.Thread(target=started.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{started.server_port}"
        started.shutdown()


def stopped(*flags):
    """The two lines that stop a run."""
    with pytest.raises(SystemExit) as ended:
        hardware.await_server(values(*flags))
    return str(ended.value).splitlines()


TAKES = '{"vllm_config": {"weight_transfer_config": {"backend": "nccl"}}}'


def test_server_that_is_up_and_takes_weights_is_all_that_is_wanted(server, tmp_path, capsys):
    (tmp_path / "health").touch()
    (tmp_path / "server_info").write_text(TAKES)
    hardware.await_server(values("--vllm_server_base_url", f"{server}/"))
    host, port = server.removeprefix("http://").split(":")
    hardware.await_server(values("--vllm_server_host", host, "--vllm_server_port", port))
    assert capsys.readouterr().out == "", "nothing was waited for"


@pytest.mark.parametrize("listens", [True, False], ids=["one that answers otherwise", "nobody"])
def test_no_server_is_one_line_with_what_starts_one_and_no_traceback(server, listens):
    port = server.rpartition(":")[2] if listens else "9"
    what, line = stopped("--vllm_server_host", "127.0.0.1", "--vllm_server_port", port, "--vllm_server_timeout", 0)
    assert f"no vLLM server answered at http://127.0.0.1:{port} in 0 s (--vllm_server_timeout)" in what
    assert f"type VLLM_SERVER_DEV_MODE=1 vllm serve models/tiny --host 127.0.0.1 --port {port} " in line


def test_server_that_comes_later_is_waited_for(monkeypatch, capsys):
    seconds = []
    monkeypatch.setattr(hardware.time, "sleep", seconds.append)
    monkeypatch.setattr(hardware, "answer", lambda url: (200, TAKES.encode()) if len(seconds) >= 3 else (None, b""))
    hardware.await_server(values())
    assert len(seconds) == 3
    assert capsys.readouterr().out == "waiting up to 240 s for a vLLM server at http://0.0.0.0:8000\n"


@pytest.mark.parametrize("transfer", [None, '{"vllm_config": {"weight_transfer_config": null}}'])
def test_server_that_takes_no_weights_is_refused(server, tmp_path, transfer):
    """Without the development mode, or without a transfer of weights."""
    (tmp_path / "health").touch()
    if transfer:
        (tmp_path / "server_info").write_text(transfer)
    what, line = stopped("--vllm_server_base_url", server)
    assert f"the vLLM server at {server} takes no new weights" in what
    assert "start it with VLLM_SERVER_DEV_MODE=1 vllm serve" in line


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

    def ask(group=0, dtype="float32", **settings):
        # TRL asks for the engine by keywords, `seed` among them: the number of the tensor-parallel group
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **kwargs: kwargs))
        settings = {"use_cpu": True, "bf16": False, "output_dir": str(tmp_path)} | settings
        llm = vllm_settings.engine(GRPOConfig(**settings), ModelConfig(dtype=dtype))
        return llm(model="path", seed=group)

    return ask


@pytest.mark.parametrize(("bf16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_engine_computes_in_the_type_of_the_update(asked, bf16, dtype):
    assert asked(bf16=bf16)["dtype"] == dtype


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python counts no references to None there")
@pytest.mark.parametrize("sleeps", [True, False])
def test_none_outlives_an_allocator_that_takes_its_references(asked, monkeypatch, sleeps):
    monkeypatch.setattr(vllm_settings, "PLENTY", 1 << 30)
    before = sys.getrefcount(None)
    asked(use_vllm=True, vllm_enable_sleep_mode=sleeps)
    assert (sys.getrefcount(None) - before > 1 << 29) == sleeps


def test_every_run_and_every_group_samples_with_a_seed_of_its_own_the_same_each_time(asked):
    seeds = [asked(group, seed=run)["seed"] for run in (0, 1, 42) for group in (0, 1, 2, 63)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)  # what numpy takes
    assert seeds[0] == asked(0, seed=0)["seed"]
