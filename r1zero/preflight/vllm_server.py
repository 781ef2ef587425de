"""A vLLM server beside the run: waits for it before the model is loaded, and says what starts one."""

import http.client
import json
import shlex
import time
import urllib.error
import urllib.request

from r1zero import processes
from r1zero.training import vllm as vllm_settings

SECONDS = 10  # to wait for one answer


def await_server(values):
    """Waits for the server of a run that has one, as long as TRL would. Exits where none comes, or where it is no use.

    TRL asks for the same once the model is loaded, and raises an error of its own for each.
    """
    if not values.use_vllm or values.vllm_mode != "server":
        return
    url = address(values)
    started, told = time.monotonic(), False
    while answer(f"{url}/health")[0] != 200:
        if time.monotonic() - started >= values.vllm_server_timeout:
            wait = f"in {values.vllm_server_timeout:g} s (--vllm_server_timeout)"
            processes.stop(f"no vLLM server answered at {url} {wait}", [f"type {serve_command(values)}"])
        if not told:
            print(f"waiting up to {values.vllm_server_timeout:g} s for a vLLM server at {url}", flush=True)
            told = True
        time.sleep(1)
    if not takes_weights(url):
        processes.stop(f"the vLLM server at {url} takes no new weights", [f"start it with {serve_command(values)}"])


def address(values):
    """The URL that TRL asks, without a slash at its end."""
    url = values.vllm_server_base_url or f"http://{values.vllm_server_host}:{values.vllm_server_port}"
    return url.rstrip("/")


def answer(url):
    """Status and body (int, bytes) of a GET, (None, b"") where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (OSError, http.client.HTTPException):
        return None, b""


def takes_weights(url):
    """Whether a server that is up has the endpoints for new weights, and an engine behind them."""
    status, body = answer(f"{url}/server_info?config_format=json")
    if status != 200:  # vLLM has this endpoint where VLLM_SERVER_DEV_MODE is 1
        return False
    return json.loads(body)["vllm_config"]["weight_transfer_config"] is not None


def serve_command(values):
    """What starts vLLM's server for this run, on this machine unless vllm_server_host names another.

    The settings are those with which `trl vllm-serve` starts it, which ends with TRL 2.0, but for the endpoints for
    images and the address: it answers whoever reaches it, and its development endpoints would obey them. The seed is
    the run's, since the server has one of its own, 0, and TRL's requests have none.
    """
    host = values.vllm_server_host
    words = ["vllm", "serve", values.model_name_or_path]
    words += ["--host", "127.0.0.1" if host == "0.0.0.0" else host, "--port", str(values.vllm_server_port)]
    words += ["--dtype", str(vllm_settings.engine_type(values, values.dtype)), "--seed", str(values.seed)]
    if values.vllm_max_model_length:
        words += ["--max-model-len", str(values.vllm_max_model_length)]
    words += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
    words += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    return f"VLLM_SERVER_DEV_MODE=1 {shlex.join(words)}"
