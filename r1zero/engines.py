"""A model to evaluate, and the two engines that generate with it: transformers anywhere, vLLM on a GPU.

An engine is a context manager that gives generate(prompts, seeds). prompts: B lists of token ids; seeds: B * n ints,
one for each completion, of which the transformers engine takes the first for the whole batch. It returns B * n lists
of token ids, the n of a prompt next to each other, each up to the token that ends it or beyond.
"""

import contextlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from peft import AutoPeftModelForCausalLM
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from r1zero import machine


@dataclass
class Model:
    """What is known of a model before its weights are loaded."""

    path: str  # a folder or hub id
    base: str  # the same, or the model that the LoRA adapter at `path` is for
    tokenizer: PreTrainedTokenizerBase
    ends: list[int]  # tokens that end a completion
    context: int  # tokens of prompt and completion
    written: str  # when its weights were written, or their commit on the hub
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


def read_model(path):
    """The Model at a path. Raises OSError, ValueError or KeyError where there is none."""
    base = path
    adapter = Path(path, "adapter_config.json")
    if adapter.is_file():
        base = json.loads(adapter.read_text())["base_model_name_or_path"]
    newest = max(newest_weights(path), newest_weights(base))
    config = AutoConfig.from_pretrained(base)
    has_tokenizer = Path(path, "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(path if has_tokenizer else base)
    return Model(
        path=path,
        base=base,
        tokenizer=tokenizer,
        ends=end_tokens(base, config, tokenizer),
        context=getattr(config.get_text_config(), "max_position_embeddings", sys.maxsize),
        written=datetime.fromtimestamp(newest).isoformat() if newest else hub_commit(base),
    )


def newest_weights(path):
    """When the newest weights in a folder were written (seconds), 0 for a hub id. Raises OSError without weights."""
    folder = Path(path)
    files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if files:
        return max(file.stat().st_mtime for file in files)
    if machine.is_folder_name(path) or folder.is_dir():
        raise OSError(f"no weights in a folder of the name {path}")
    return 0


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
    if not model.is_adapter:
        return AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype).eval()
    adapted = AutoPeftModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    return adapted.merge_and_unload().to(getattr(torch, dtype)).eval()


@contextlib.contextmanager
def transformers_engine(model, args, state):
    """Generates with transformers on this process's device. args: the command's flags; state: accelerate's."""
    loaded = load(model, args.dtype).to(state.device)
    pad = model.tokenizer.pad_token_id or 0  # masked before a prompt, cut off behind an end
    sampling = {"do_sample": False}
    if args.temperature:
        sampling = {"do_sample": True, "temperature": args.temperature, "top_p": 1.0, "top_k": 0}
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

    yield generate


@contextlib.contextmanager
def vllm_engine(model, args, state):
    """Generates with vLLM: one engine in each process, on the process's own GPU, as TRL has it."""
    from trl.trainer.utils import ensure_master_addr_port
    from vllm import LLM, SamplingParams

    os.environ["RANK"] = str(state.process_index)
    os.environ["LOCAL_RANK"] = str(state.local_process_index)
    os.environ["WORLD_SIZE"] = str(state.num_processes)
    ensure_master_addr_port()
    with tempfile.TemporaryDirectory() as merged:
        if model.is_adapter:
            load(model, args.dtype).save_pretrained(merged)
            model.tokenizer.save_pretrained(merged)
        llm = LLM(
            model=merged if model.is_adapter else model.path,
            dtype=args.dtype,
            seed=args.seed,
            max_model_len=model.longest + args.max_completion_length,
            distributed_executor_backend="external_launcher",
            enable_sleep_mode=True,
        )

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

    yield generate
    llm.sleep(level=2)  # frees the GPU for the next model
