"""A model to evaluate, and the two engines that generate with it: transformers, and vLLM where it is installed.

An engine is a context manager that gives generate(prompts, seeds). prompts: B lists of token ids; seeds: B * n ints,
one for each completion, of which the transformers engine takes the first for the whole batch. It returns B * n lists
of token ids, the n of a prompt next to each other, each up to the token that ends it or beyond.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import connection
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from r1zero.preflight import model as model_checks
from r1zero.training import generation as sampler


@dataclass
class Model:
    """What is known of a model before its weights are loaded."""

    path: str  # a folder or hub id
    base: str  # the same, or the model that the LoRA adapter at `path` is for
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    ends: list[int]  # tokens that end a completion
    context: int  # tokens of prompt and completion
    written: str  # when its weights were written, or their commit on the hub
    trust_remote_code: bool = False
    longest: int = 0  # tokens of the longest prompt

    @property
    def is_adapter(self):
        return self.base != self.path

    @property
    def name(self):
        """The folder's name; a checkpoint's with its run's before it."""
        folder = Path(self.path)
        if folder.is_dir():
            folder = folder.resolve()
        if folder.name.startswith("checkpoint-"):
            return f"{folder.parent.name}-{folder.name}"
        return folder.name


def read_model(path, trust_remote_code=False):
    """The Model at a path. Raises ValueError, with a line that says what to do, where there is none to be used."""
    base, errors = path, []
    if Path(path, model_checks.ADAPTER_CONFIG).is_file():
        base = model_checks.adapter_base(path)
        errors += model_checks.adapter_errors(path)
    config = model_checks.read_config(base, trust_remote_code)
    model_checks.without_weights(config, trust_remote_code)
    has_tokenizer = Path(path, "tokenizer_config.json").is_file()
    tokenizer = model_checks.read_tokenizer(path if has_tokenizer else base, trust_remote_code)
    errors += model_checks.weight_errors(base, config, trust_remote_code=trust_remote_code)
    if errors:
        raise ValueError(errors[0])
    newest = max(newest_weights(path), newest_weights(base))
    return Model(
        path=path,
        base=base,
        config=config,
        tokenizer=tokenizer,
        ends=end_tokens(base, config, tokenizer),
        context=getattr(config.get_text_config(), "max_position_embeddings", sys.maxsize),
        written=datetime.fromtimestamp(newest).isoformat() if newest else hub_commit(base),
        trust_remote_code=trust_remote_code,
    )


def newest_weights(path):
    """When the newest weights in a folder were written (seconds), 0 for a hub id."""
    return max((file.stat().st_mtime for file in Path(path).glob("*.safetensors")), default=0)


def hub_commit(model_id):
    """The commit of a hub model whose config.json has just been read: its folder in the cache is named after it."""
    return Path(try_to_load_from_cache(model_id, "config.json")).parent.name


def end_tokens(base, config, tokenizer):
    """The ids, sorted, of the tokens that end a completion, after the model's configuration and its tokenizer."""
    try:
        ends = GenerationConfig.from_pretrained(base).eos_token_id
    except OSError:  # it has no generation_config.json
        ends = config.get_text_config().eos_token_id
    if not isinstance(ends, list):
        ends = [ends]
    return sorted({*ends, tokenizer.eos_token_id} - {None})


def load(model, dtype):
    """The transformers model, a LoRA adapter merged into its base in float32."""
    trust = {"trust_remote_code": model.trust_remote_code}
    if not model.is_adapter:
        return AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype, **trust).eval()
    adapted = AutoPeftModelForCausalLM.from_pretrained(model.path, dtype=torch.float32, **trust)
    return adapted.merge_and_unload().to(getattr(torch, dtype)).eval()


@contextlib.contextmanager
def transformers_engine(model, args, state):
    """Generates with transformers on this process's device. args: the command's flags; state: accelerate's."""
    loaded = load(model, args.dtype).to(state.device)
    pad = model.tokenizer.pad_token_id or 0  # masked before a prompt, cut off behind an end
    sampling = {"do_sample": False}
    if args.temperature:
        sampling = {"do_sample": True, "temperature": args.temperature, "top_p": 1.0, "top_k": 0}
    sampler.drop_finished_rows(loaded)
    # In place of the model's own, which may hold a top_k or a repetition_penalty
    loaded.generation_config = GenerationConfig(
        max_new_tokens=args.max_completion_length,
        num_return_sequences=args.n,
        eos_token_id=model.ends or None,
        pad_token_id=pad,
        **sampling,
    )

    def generate(prompts, seeds):
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), pad)  # (B, T), prompts end at the right
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        torch.manual_seed(seeds[0])
        with torch.inference_mode():
            output = loaded.generate(input_ids=ids.to(state.device), attention_mask=mask.to(state.device))
        return output[:, width:].tolist()

    try:
        yield generate
    finally:
        del loaded.generate  # drop_finished_rows' own refers to the model, which would stay on the card


def why_no_vllm():
    """Why vLLM cannot generate here, with what to type (str); None where it can. Importing vLLM takes seconds."""
    if importlib.util.find_spec("vllm") is None:
        return "needs vLLM, which is not installed: type pip install -e '.[gpu]', or pass --backend transformers"
    with engine_environment():
        from vllm.platforms import current_platform
    if torch.cuda.is_available():
        if current_platform.is_cpu():
            return "finds a GPU and a vLLM that is built for the CPU: pass --backend transformers"
    elif not current_platform.is_cpu():
        return "needs a GPU, or a vLLM that is built for the CPU: pass --backend transformers"
    return None


@contextlib.contextmanager
def engine_environment(**defaults):
    """The environment to import vLLM and to build its engine in; restores it, with all that vLLM has set there.

    defaults: variables to set where the user has not.
    """
    before = dict(os.environ)
    # INFO is 60 lines an engine. FlashInfer's sampler, which no request here needs, would be compiled by CUDA's nvcc
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    os.environ.update(quiet | defaults | before)
    # A process of its own, which ends without this one, and no fork, which would inherit locks and signal handlers
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="1", VLLM_WORKER_MULTIPROC_METHOD="spawn")
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def build_engine(path, model, args, state):
    """vLLM's LLM of this process alone, whatever the other processes do; its engine runs in a process of its own.

    It is no rank of the launcher's: vLLM meets its own processes by a file, and never reads RANK or MASTER_PORT.
    """
    settings, defaults = {}, {}
    if state.device.type == "cuda":
        # The rest, 1.5 GiB of a T4's 14.6, is for what this process itself has there: its context and NCCL's buffers
        settings["gpu_memory_utilization"] = 0.9
        if state.num_processes > 1:
            settings["device_ids"] = [state.local_process_index]  # counted in CUDA_VISIBLE_DEVICES where that is set
    else:
        # Without kv_cache_memory_bytes vLLM takes 92 % of the machine. 1 GiB holds 18,700 tokens of Qwen2.5-1.5B
        # (28 layers x 2 x 256 x 4 bytes); VLLM_CPU_KVCACHE_SPACE, in GiB, comes before it.
        settings["kv_cache_memory_bytes"] = 2**30
        settings["enforce_eager"] = True  # compiling took 17 to 60 s a model, and the tiny one ran no faster for it
        if state.num_processes > 1:
            defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # vLLM would bind every engine to the same cores
    with engine_environment(**defaults):
        from vllm import LLM

        return LLM(
            model=path,
            dtype=args.dtype,
            seed=args.seed,
            max_model_len=model.longest + args.max_completion_length,
            trust_remote_code=model.trust_remote_code,
            **settings,
        )


def watch(processes, ended):
    """Interrupts this process where one of the engine's ends before it should: vLLM would wait for it for ever.

    processes: list of multiprocessing's; ended: the Event that the engine is to end.
    """
    connection.wait([process.sentinel for process in processes])
    if not ended.is_set():
        print("vLLM's engine was killed: is there too little memory?", file=sys.stderr, flush=True)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@contextlib.contextmanager
def vllm_engine(model, args, state):
    """Generates with vLLM, by an engine for each process that has work; ends it, so that the next has the memory."""
    others, ended = multiprocessing.active_children(), threading.Event()
    with tempfile.TemporaryDirectory() as merged:
        if model.is_adapter:
            load(model, args.dtype).save_pretrained(merged)
            model.tokenizer.save_pretrained(merged)
        llm = build_engine(merged if model.is_adapter else model.path, model, args, state)
    processes = [process for process in multiprocessing.active_children() if process not in others]
    threading.Thread(target=watch, args=(processes, ended), daemon=True).start()
    from vllm import SamplingParams

    def generate(prompts, seeds):
        requests, params = [], []
        for number, seed in enumerate(seeds):
            requests.append({"prompt_token_ids": prompts[number // args.n]})
            params.append(
                SamplingParams(
                    temperature=args.temperature,
                    max_tokens=args.max_completion_length,
                    stop_token_ids=model.ends,
                    seed=seed,
                )
            )
        results = llm.generate(requests, params, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]

    try:
        yield generate
    finally:
        ended.set()
        # Seconds until it is killed: vLLM's own 5 were too few to end in order, and a launcher kills this one after 30
        llm.llm_engine.engine_core.shutdown(timeout=15)
