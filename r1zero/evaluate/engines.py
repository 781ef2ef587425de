"""What is known of a model before its weights are loaded, and the two engines that generate with it.

An engine is a context manager that gives generate(prompts, seeds). prompts: B lists of token ids; seeds: B * n ints,
one for each completion. transformers takes the first of them for the whole batch. generate returns B * n lists of
token ids, the n of a prompt next to each other, each up to the token that ends it or beyond.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from r1zero.files import broken_line
from r1zero.preflight import model as preflight
from r1zero.training.generation import drop_finished_rows


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
        """Return the folder's name, for a checkpoint with the name of its run before it."""
        folder = Path(self.path)
        if folder.is_dir():
            folder = folder.resolve()
        if folder.name.startswith("checkpoint-"):
            return f"{folder.parent.name}-{folder.name}"
        return folder.name


def read_model(path, trust_remote_code=False):
    """Return the Model at a path. Raises ValueError if it cannot be used, with a line that says what to do."""
    base, errors = path, []
    if Path(path, preflight.ADAPTER_CONFIG).is_file():
        base = preflight.adapter_base(path)
        line = broken_line(Path(path, preflight.ADAPTER_WEIGHTS))
        errors += [line] if line else []
    config = preflight.read_config(base, trust_remote_code)
    preflight.without_weights(config, trust_remote_code)
    has_tokenizer = Path(path, "tokenizer_config.json").is_file()
    tokenizer = preflight.read_tokenizer(path if has_tokenizer else base, trust_remote_code)
    errors += preflight.weight_errors(base, config, trust_remote_code)
    if errors:
        raise ValueError(errors[0])
    return Model(
        path=path,
        base=base,
        config=config,
        tokenizer=tokenizer,
        ends=end_tokens(base, config, tokenizer),
        context=getattr(config.get_text_config(), "max_position_embeddings", sys.maxsize),
        written=when_written(path, base),
        trust_remote_code=trust_remote_code,
    )


def when_written(path, base):
    """Return when the newest weights in two folders were written (str), or the commit if `base` is a hub id."""
    files = [*Path(path).glob("*.safetensors"), *Path(base).glob("*.safetensors")]
    if files:
        return datetime.fromtimestamp(max(file.stat().st_mtime for file in files)).isoformat()
    # Its config.json has just been read, and its folder in the hub's cache is named after the commit
    return Path(try_to_load_from_cache(base, "config.json")).parent.name


def end_tokens(base, config, tokenizer):
    """Return the ids, sorted, of the tokens that end a completion, by the model's configuration and its tokenizer."""
    try:
        ends = GenerationConfig.from_pretrained(base).eos_token_id
    except OSError:  # it has no generation_config.json
        ends = config.get_text_config().eos_token_id
    if not isinstance(ends, list):
        ends = [ends]
    return sorted({*ends, tokenizer.eos_token_id} - {None})


def load(model, dtype):
    """Load the transformers model. A LoRA adapter is merged into its base in float32."""
    trust = {"trust_remote_code": model.trust_remote_code}
    if not model.is_adapter:
        return AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype, **trust).eval()
    adapted = AutoPeftModelForCausalLM.from_pretrained(model.path, dtype=torch.float32, **trust)
    return adapted.merge_and_unload().to(getattr(torch, dtype)).eval()


def generation_config(model, temperature, longest, completions=1):
    """Return what takes the place of the model's own GenerationConfig with its top_k or repetition_penalty.

    temperature: 0 is greedy; longest: tokens of a completion at most; completions: of each prompt.
    """
    sampling = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=longest,
        num_return_sequences=completions,
        eos_token_id=model.ends or None,
        pad_token_id=model.tokenizer.pad_token_id or 0,
        **sampling,
    )


@contextlib.contextmanager
def transformers_engine(model, args, state):
    """Generate with transformers on this process's device. args: the command's flags; state: accelerate's."""
    loaded = load(model, args.dtype).to(state.device)
    drop_finished_rows(loaded)
    loaded.generation_config = generation_config(model, args.temperature, args.max_completion_length, args.n)
    pad = loaded.generation_config.pad_token_id  # masked before a prompt, cut off behind an end

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
        del loaded.generate  # drop_finished_rows' own refers to the model and would keep it on the card


@contextlib.contextmanager
def vllm_engine(model, args, state):
    """Generate with vLLM on this process's device. Raises ChildProcessError if vLLM's process ends too early."""
    with contextlib.ExitStack() as running:
        with tempfile.TemporaryDirectory() as merged:
            path = model.path
            if model.is_adapter:
                path = merged
                load(model, args.dtype).save_pretrained(merged)
                model.tokenizer.save_pretrained(merged)
            ask = running.enter_context(vllm_process(vllm_settings(path, model, args, state)))

        def generate(prompts, seeds):
            sampling = {
                "temperature": args.temperature,
                "max_tokens": args.max_completion_length,
                "stop_token_ids": model.ends,
                "detokenize": False,
            }
            repeated = [prompt for prompt in prompts for _ in range(args.n)]
            return ask(repeated, [sampling | {"seed": seed} for seed in seeds])

        yield generate


def vllm_settings(path, model, args, state):
    """Return the arguments (dict) of vLLM's LLM, whose engine is this process's own, whatever the others do."""
    settings = {
        "model": path,
        "dtype": args.dtype,
        "seed": args.seed,
        "max_model_len": model.longest + args.max_completion_length,
        "trust_remote_code": model.trust_remote_code,
    }
    if state.device.type == "cuda":
        # The rest, 1.5 GiB of a T4's 14.6, is for what this process itself has there: its context and NCCL's buffers
        settings["gpu_memory_utilization"] = 0.9
        if state.num_processes > 1:
            settings["device_ids"] = [state.local_process_index]  # counted in CUDA_VISIBLE_DEVICES if that is set
    else:
        # Without kv_cache_memory_bytes vLLM takes 92 % of the machine. 1 GiB holds 18,700 tokens of Qwen2.5-1.5B
        # (28 layers x 2 x 256 x 4 bytes); VLLM_CPU_KVCACHE_SPACE, in GiB, comes before it.
        settings["kv_cache_memory_bytes"] = 2**30
        # vLLM 0.30 rewinds the random numbers of a prompt that it splits, which ends in an error on a CPU
        settings["enable_chunked_prefill"] = False
        settings["enforce_eager"] = True  # compiling took 17 to 60 s a model, and the tiny one ran no faster for it
    return settings


@contextlib.contextmanager
def vllm_process(settings):
    """Run vLLM in a process of its own: its end frees all the memory of an engine, whatever vLLM still refers to.

    settings: of vLLM's LLM. Gives ask(prompts, params), as serve() answers it, once the weights are loaded.
    """
    pipe, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, settings))

    def ask(*request):
        try:
            pipe.send(request)
            return pipe.recv()
        except (EOFError, ConnectionError) as error:
            process.join()
            found = f"vLLM's process ended with status {process.exitcode}"
            raise ChildProcessError(f"{found}: its error stands above, or memory was short") from error

    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for this process to answer
    try:
        process.start()
        signal.signal(signal.SIGINT, handler)
        theirs.close()  # the pipe ends with the other process
        ask([], [])  # answered once the weights are loaded
        yield ask
    finally:
        process.kill()
        process.join()


def serve(pipe, settings):
    """Answer each (prompts, params) with completions, lists of token ids, for as long as the other process lives.

    prompts: lists of token ids; params: dicts for SamplingParams, one for each prompt.
    """
    threading.Thread(target=end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    multiprocessing.set_start_method("fork", force=True)  # vLLM's lock of "spawn" would be reported as leaked
    defaults = {
        "VLLM_LOGGING_LEVEL": "ERROR",  # INFO is 60 lines an engine
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # CUDA's nvcc would compile it, and no request here needs it
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or the engines of all processes share the same cores of a CPU
    }
    os.environ.update(defaults | os.environ)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # a process of vLLM's own would outlive this one
    from vllm import LLM, SamplingParams

    llm = LLM(**settings)
    while True:
        prompts, params = pipe.recv()
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        results = llm.generate(requests, [SamplingParams(**each) for each in params], use_tqdm=False)
        pipe.send([list(result.outputs[0].token_ids) for result in results])


def end_with(process):
    process.join()
    os._exit(1)
