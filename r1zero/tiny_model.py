"""Make the embedded default's data and model here, in about three minutes on two cores: models/tiny and its problems.

    python -m r1zero.tiny_model                                       # numbers in configs/tiny_model.yaml
    python -m r1zero.tiny_model --steps 100 --output_dir models/quick # as everywhere, a flag overrides the YAML

GRPO can only sharpen what a model sometimes does, and no pretrained model is at hand, so a very small one is taught
the format and the arithmetic first: a systematic search, one candidate after another, each followed by its verdict.

    3*7 = 21: 21+5 = 26 no, 21-5 = 16 yes
    </think>
    <answer>(3*7)-5</answer>

What it is deliberately not taught is patience. After every ` no` the label is, with probability `give_up_rate`, the
end of the search, whatever the trace does next. So every equation and every verdict of the whole search is learned,
while the model itself stops after a few tries and answers with the last one. Patience is what GRPO has to discover.

It is a stand-in that exercises the whole pipeline, and no claim about any real model.
"""

import bisect
import itertools
import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    get_cosine_schedule_with_warmup,
)
from trl import TrlParser

import preprocess
from r1zero import ROOT
from r1zero.prompts import fill_template, render_template

END_OF_TEXT = "<|endoftext|>"
GIVE_UP = "\n</think>\n<answer>"
LARGEST = 99  # value of a step in a search
PIECES = [GIVE_UP, "</answer>", " = ", ": ", " no", " yes", ", ", "\n", "+", "-", "*", "/", "(", ")"]
IGNORED = -100  # label of what carries no loss


def setting(text):
    """A field whose value stands in the YAML, with its line of --help."""
    return field(metadata={"help": text})


@dataclass
class TinyModelArguments:
    """The numbers of configs/tiny_model.yaml."""

    output_dir: str = setting("folder to write the model to")
    data_dir: str = setting("folder of the problems; they are made where it has none")
    max_number: int = setting("largest of the three numbers of a problem")
    max_target: int = setting("largest target of a problem")
    train_size: int = setting("problems to train on")
    test_size: int = setting("problems held out, which the warm-up does not see either")
    hidden_size: int = setting("width of the model")
    num_hidden_layers: int = setting("layers of the model")
    num_attention_heads: int = setting("attention heads of a layer")
    intermediate_size: int = setting("width of a layer's perceptron")
    max_position_embeddings: int = setting("longest text in tokens, prompt and completion together")
    give_up_rate: float = setting("chance that the label after a failed try is the end of the search")
    cut_share: float = setting("share of searches that are cut at a random try")
    verdict_weight: float = setting("loss weight of ' no', where any other token has 1")
    yes_weight: float = setting("loss weight of ' yes'")
    curriculum: float = setting("share of the warm-up over which the longest search allowed grows")
    shortest_cap: int = setting("tries of the longest search allowed at the start")
    steps: int = setting("optimizer steps of the warm-up")
    batch_size: int = setting("searches in a step")
    learning_rate: float = setting("learning rate after warmup_steps; from there a cosine takes it to 0")
    weight_decay: float = setting("weight decay")
    warmup_steps: int = setting("steps over which the learning rate rises from 0")
    seed: int = setting("seed of the problems, of the weights and of the warm-up")


def build_tokenizer():
    """A byte-level tokenizer that encodes any text, with the prompt's fixed text in a few tokens.

    A prompt of three numbers takes 9 tokens, and each number up to 99 one.
    """
    prompt = fill_template(render_template("countdown", "base"), numbers="[\0, \0]", target="\0")
    pieces = [*prompt.split("\0"), *PIECES, *map(str, range(LARGEST + 1))]
    vocabulary = {END_OF_TEXT: 0}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in dict.fromkeys(pieces)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, padding_side="left"
    )


def build_config(args, tokenizer):
    """The shape of the model: Qwen2's architecture, very small."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_attention_heads,
        intermediate_size=args.intermediate_size,
        max_position_embeddings=args.max_position_embeddings,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def combinations(x, y):
    """All (left, operator, right, value) of two numbers with a whole value in 0..99, in the order they are tried."""
    high, low = max(x, y), min(x, y)
    found = [(x, "+", y, x + y), (high, "-", low, high - low), (x, "*", y, x * y)]
    if low and high % low == 0:
        found.append((high, "/", low, high // low))
    return [combination for combination in found if combination[3] <= LARGEST]


def search(nums, target):
    """The systematic search: every candidate as (text before it, its text, the answer it stands for), up to the first
    that hits the target. Whole, non-negative steps are enough for three numbers. Empty where none hits it."""
    a, b, c = nums
    tried = []
    for x, y, z in ((a, b, c), (a, c, b), (b, c, a)):
        for left, operator, right, value in combinations(x, y):
            pair = f"{left}{operator}{right}"
            before = f"\n{pair} = {value}: "
            for first, second_operator, second, result in combinations(value, z):
                answer = f"({pair}){second_operator}{z}" if first == value else f"{z}{second_operator}({pair})"
                tried.append((before, f"{first}{second_operator}{second} = {result}", answer))
                if result == target:
                    return tried
                before = ", "
    return []


def write_trace(tried, solved):
    """The completion that tries these candidates in turn and answers with the last, which is right if `solved`."""
    text = " no".join(before + candidate for before, candidate, _ in tried)
    verdict = "yes" if solved else "no"
    answer = tried[-1][2]
    return f"{text} {verdict}{GIVE_UP}{answer}</answer>"


def warm_up_examples(problems, tokenizer, args, rng):
    """Endless (input ids, labels, loss weights) of one prompt with its completion, three lists of equal length.

    problems: list of (nums, target) with nums in the order of the prompt. The longest search drawn from grows over
    the first `curriculum` of the warm-up: " yes" is rare in long ones, and to tell it from " no" is learned last.
    """
    no, yes = tokenizer.convert_tokens_to_ids([" no", " yes"])
    token_weights = {no: args.verdict_weight, yes: args.yes_weight, IGNORED: 0.0}
    template = render_template("countdown", "base")
    searches = [(nums, target, search(nums, target)) for nums, target in problems]
    searches.sort(key=lambda each: len(each[2]))
    lengths = [len(tried) for _, _, tried in searches]
    for drawn in itertools.count():
        progress = min(1.0, drawn / max(1, args.curriculum * args.steps * args.batch_size))
        longest = args.shortest_cap + progress * (lengths[-1] - args.shortest_cap)
        nums, target, tried = searches[rng.randrange(bisect.bisect_right(lengths, longest))]
        tries = len(tried)
        if rng.random() < args.cut_share:
            tries = rng.randint(1, len(tried))
        prompt_ids = tokenizer(fill_template(template, numbers=list(nums), target=target))["input_ids"]
        completion = write_trace(tried[:tries], solved=tries == len(tried))
        completion_ids = tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]
        labels = decision_labels(completion_ids, tokenizer, args.give_up_rate, rng)
        yield (
            prompt_ids + completion_ids,
            [IGNORED] * len(prompt_ids) + labels,
            [0.0] * len(prompt_ids) + [token_weights.get(token, 1.0) for token in labels],
        )


def decision_labels(ids, tokenizer, give_up_rate, rng):
    """The labels of a completion's ids (list[int]): the ids themselves, but for the decision after a failed try.

    Whether to go on there is a coin's toss, and does not depend on where this trace happens to stop.
    """
    no, give_up = tokenizer.convert_tokens_to_ids([" no", GIVE_UP])
    labels = ids.copy()
    for i in range(1, len(ids)):
        if ids[i - 1] != no:
            continue
        if rng.random() < give_up_rate:
            labels[i] = give_up
        elif ids[i] == give_up:
            labels[i] = IGNORED
    return labels


def padded_batches(examples, batch_size, rng, pad_id, buffered=8):
    """Endless padded batches (ids, labels, loss weights), three (B, T) tensors, of examples of similar length."""
    while True:
        pool = sorted(itertools.islice(examples, buffered * batch_size), key=lambda example: len(example[0]))
        for start in rng.sample(range(0, len(pool), batch_size), buffered):
            ids, labels, weights = zip(*pool[start : start + batch_size], strict=True)
            yield padded(ids, pad_id), padded(labels, IGNORED), padded(weights, 0.0)


def padded(rows, fill):
    """(B, T) tensor of B lists, filled up on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices, in float32: the momentum is orthogonalised by five Newton-Schulz steps
    and scaled to AdamW's typical update (Liu et al. 2025).

    torch.optim.Muon does the same in bfloat16, in which a CPU without native support multiplies 27 times slower: 363
    against 23 ms a step for this model, where everything else in a step takes about 120 ms.
    """

    def __init__(self, params, lr, weight_decay, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"])  # (out, in)
                wide = update.T if update.size(0) > update.size(1) else update
                x = wide / wide.norm().clamp(min=1e-7)
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                x = x.T if update.size(0) > update.size(1) else x
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def train(model, tokenizer, problems, args):
    """The supervised warm-up, in place."""
    rng = random.Random(args.seed)
    examples = warm_up_examples(problems, tokenizer, args, rng)
    data = padded_batches(examples, args.batch_size, rng, tokenizer.pad_token_id)
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            matrices.append(parameter)
        else:
            others.append(parameter)
    settings = {"lr": args.learning_rate, "weight_decay": args.weight_decay}
    optimizers = [Muon(matrices, **settings), torch.optim.AdamW(others, betas=(0.9, 0.98), **settings)]
    schedules = [get_cosine_schedule_with_warmup(o, args.warmup_steps, args.steps) for o in optimizers]
    bar = tqdm(range(args.steps), desc="warm-up", mininterval=2)
    for _ in bar:
        ids, labels, weights = next(data)
        logits = model(input_ids=ids).logits[:, :-1]  # (B, T-1, V); right padding needs no mask in a causal model
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        weights = weights[:, 1:].flatten()
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for step in (*optimizers, *schedules):
            step.step()
        model.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def read_arguments(argv):
    """TinyModelArguments from the YAML and the flags; what cannot be read ends the program with one line."""
    if "--config" not in argv:
        argv = ["--config", str(ROOT / "configs" / "tiny_model.yaml"), *argv]
    parser = TrlParser(
        (TinyModelArguments,),
        prog="python -m r1zero.tiny_model",
        description="Makes the embedded default's problems and its model, by a supervised warm-up of a few minutes. "
        "--config FILE names another YAML with all of these settings than configs/tiny_model.yaml.",
    )
    try:
        args, unknown = parser.parse_args_and_config(argv, return_remaining_strings=True)
    except (OSError, ValueError, yaml.YAMLError) as error:
        sys.exit(f"r1zero.tiny_model: the settings cannot be read ({error})")
    if unknown:
        sys.exit(f"r1zero.tiny_model: found {' '.join(unknown)}, which is no setting; --help lists them all")
    return args


def data_flags(args):
    """The words after `python preprocess.py` that write the problems."""
    words = ["countdown", "--local_dir", args.data_dir, "--num_operands", "3"]
    for name in ("max_number", "max_target", "train_size", "test_size", "seed"):
        words += [f"--{name}", str(getattr(args, name))]
    return words


def planned(argv):
    """What `python -m r1zero.tiny_model <argv>` would make, without making it.

    Returns (rows, prompts, config, tokenizer): the number of training problems (int), the longest prompts (list[str]),
    the model's Qwen2Config and its tokenizer.
    """
    args = read_arguments(argv)
    rows, prompts = preprocess.planned(data_flags(args))
    tokenizer = build_tokenizer()
    return rows, prompts, build_config(args, tokenizer), tokenizer


def main(argv=None):
    args = read_arguments(sys.argv[1:] if argv is None else argv)
    if not Path(args.data_dir, "test.parquet").exists():
        preprocess.main(data_flags(args))
    if Path(args.output_dir, "config.json").exists():
        sys.exit(
            f"r1zero.tiny_model: {args.output_dir} is there already: remove it, or name another with --output_dir"
        )

    # Only problems of train, in every order of their numbers
    rows = pq.read_table(Path(args.data_dir, "train.parquet"), columns=["nums", "target"]).to_pylist()
    problems = []
    for row in rows:
        problems += [(nums, row["target"]) for nums in sorted(set(itertools.permutations(row["nums"])))]

    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = Qwen2ForCausalLM(build_config(args, tokenizer))
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(rows):,} problems to warm up on")
    train(model, tokenizer, problems, args)

    # Written under another name first: a folder with the right name is a whole model
    part = Path(f"{args.output_dir}.part")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    os.rename(part, args.output_dir)
    print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("r1zero.tiny_model: stopped before the model was written; the same command starts again")
