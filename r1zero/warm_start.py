"""Show a pretrained model searches, so that GRPO on Countdown has something to reinforce: a supervised warm start.

    python -m r1zero.warm_start                                                       # as configs/warm_start.yaml says
    python -m r1zero.warm_start --model Qwen/Qwen2.5-0.5B --output_dir models/mine    # a flag overrides the YAML

The searches are those of r1zero.tiny_model, of three or more numbers, with their lines in random order. A line that
solves the problem is among the first few, as if the writer had an idea. But after every failed try the search may
break off, and the answer is then wrong: GRPO has to discover patience, and where to look first.
"""

import itertools
import os
import random
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from r1zero.preflight import hardware, model
from r1zero.tiny_model import make_problems, read_settings, search_lines, setting, write_trace


@dataclass
class WarmStartArguments:
    """The settings in configs/warm_start.yaml that are not SFTTrainer's."""

    model: str = setting("the pretrained model: a folder or a hub id")
    data_dir: str = setting("folder of the problems; they are made if it has none. Those of train are searched")
    problems: str = setting("flags of preprocess.py countdown to make the problems with")
    searches: int = setting("searches to train on, each once")
    whole_share: float = setting("share of searches that go on: they show late tries, and no habit of giving up")
    longest: int = setting("tries of the longest search")
    give_up_rate: float = setting("chance that any other search breaks off after a failed try")
    hit_within: int = setting(
        "lines of a search in random order within which one that solves the problem stands; 0: the fixed order"
    )


class CPUTrainer(SFTTrainer):
    """Take the model's own loss: without a GPU TRL's head scores the prompts too, and a step takes twice as long."""

    compute_loss = Trainer.compute_loss


def draw_search(nums, target, is_whole, args, rng):
    """Draw a search. Return its candidates, and whether the last one hits the target."""
    lines = list(search_lines([(number, str(number)) for number in nums]))
    if args.hit_within:
        rng.shuffle(lines)
        hits = [line for line in lines if any(candidate[0] == target for candidate in line)]
        if hits and not is_whole:
            lines.remove(hits[0])
            lines.insert(rng.randrange(args.hit_within), hits[0])
    tried = []
    for candidate in itertools.islice(itertools.chain.from_iterable(lines), args.longest):
        tried.append(candidate)
        if candidate[0] == target or (not is_whole and rng.random() < args.give_up_rate):
            break
    return tried, tried[-1][0] == target


def example(row, tokenizer, args, rng):
    """Return the `input_ids` of a problem's prompt and of a search, and the `completion_mask` of what is trained.

    Prompt and search are tokenized apart, as GRPO has them: in one text Qwen merges the prompt's last character with
    the search's first. What follows a failed try is not trained in a whole search. row: dict of train.parquet.
    """
    is_whole = rng.random() < args.whole_share
    text = write_trace(*draw_search(row["nums"], row["target"], is_whole, args, rng))
    prompt_ids = tokenizer(row["prompt"])["input_ids"]
    completion = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [0] * len(prompt_ids)
    for start, _ in completion["offset_mapping"]:
        mask.append(int(not is_whole or not text[:start].endswith((" no", " no\n"))))
    ids = [*prompt_ids, *completion["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": ids, "completion_mask": [*mask, 1]}


def read_arguments(argv):
    """Return WarmStartArguments and SFTConfig of the YAML and the flags.

    What is not said is chosen for this machine: a GPU if there is one, and bfloat16 if it computes that faster.
    """
    on_cpu = not torch.cuda.is_available()
    has_bf16 = hardware.bfloat16_speed() > 1 if on_cpu else torch.cuda.is_bf16_supported(including_emulation=False)
    argv = ["--use_cpu", str(on_cpu), "--bf16", str(has_bf16), *argv]
    description = "Show a pretrained model searches for Countdown's answers. --config FILE names another YAML."
    return read_settings("warm_start", (WarmStartArguments, SFTConfig), argv, description)


def main(argv=None):
    """Make the problems if they do not exist, and the model. Exit with a line if the model exists already."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # one process
    args, training_args = read_arguments(sys.argv[1:] if argv is None else argv)
    output_dir = training_args.output_dir
    make_problems("warm_start", output_dir, args.data_dir, shlex.split(args.problems))
    try:
        model.read_config(args.model)
        tokenizer = model.read_tokenizer(args.model)
    except ValueError as error:
        sys.exit(f"r1zero.warm_start: {error}")

    # Only problems of train: the held-out ones stay unseen
    rows = pq.read_table(Path(args.data_dir, "train.parquet"), columns=["prompt", "nums", "target"])
    rows = itertools.cycle(rows.slice(0, args.searches).to_pylist())
    rng = random.Random(training_args.seed)
    examples = [example(row, tokenizer, args, rng) for row in itertools.islice(rows, args.searches)]
    at_once = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    for start in range(0, len(examples), at_once):  # sorted by length within a step: the same update, less padding
        of_step = slice(start, start + at_once)
        examples[of_step] = sorted(examples[of_step], key=lambda each: len(each["input_ids"]))
    tokens = sum(len(each["input_ids"]) for each in examples)
    arithmetic = "bfloat16" if training_args.bf16 else "float16" if training_args.fp16 else "float32"
    print(f"{len(examples):,} searches, {tokens:,} tokens; {arithmetic} on {training_args.device}", flush=True)

    # Rename at the end, so that a folder of the final name is a whole model
    training_args.output_dir = f"{output_dir}.part"
    trainer_class = CPUTrainer if training_args.use_cpu else SFTTrainer
    trainer = trainer_class(
        args.model, training_args, train_dataset=Dataset.from_list(examples), processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model()
    os.rename(training_args.output_dir, output_dir)
    print(f"wrote {output_dir}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a model or a problem writes what a terminal may lack
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("r1zero.warm_start: stopped before the model was written; the same command starts again")
