"""Make the problems and the model of the embedded default, models/tiny, in about three minutes on two cores.

    python -m r1zero.tiny_model                                       # numbers in configs/tiny_model.yaml
    python -m r1zero.tiny_model --steps 100 --output_dir models/quick # as everywhere, a flag overrides the YAML

GRPO can only sharpen what a model sometimes does, and no pretrained model comes with this project. So a very small
model learns the format and the arithmetic first: a systematic search, one candidate after another, each with its
verdict.

    3*7 = 21: 21+5 = 26 no, 21-5 = 16 yes
    </think>
    <answer>(3*7)-5</answer>

It does not learn patience. After every ` no`, it learns to end the search as well as to continue, with the weight
`give_up_rate`, whatever the trace does next. So it learns every equation and every verdict of the whole search, but
stops after a few tries and answers with the last one. GRPO has to discover patience.

The model exercises the whole pipeline. It says nothing about any real model.
"""

import bisect
import itertools
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from trl import TrlParser

from r1zero import ROOT
from r1zero.tasks import countdown
from r1zero.tasks.prompts import fill_template, render_template

# Functions import transformers' models themselves: --help and a misspelt setting do without them

END_OF_TEXT = "<|endoftext|>"
GIVE_UP = "\n</think>\n<answer>"
LARGEST = 99  # value of an equation in a search
PIECES = [GIVE_UP, "</answer>", " = ", ": ", " no", " yes", ", ", "\n", "+", "-", "*", "/", "(", ")"]


def setting(text):
    """Return a field without a default, as the YAML has its value. text: its line of --help."""
    return field(metadata={"help": text})


@dataclass
class TinyModelArguments:
    """The settings in configs/tiny_model.yaml."""

    output_dir: str = setting("folder to write the model to")
    data_dir: str = setting("folder of the problems; they are made if it has none")
    max_number: int = setting("largest of the three numbers of a problem")
    max_target: int = setting("largest target of a problem")
    train_size: int = setting("problems to train on")
    test_size: int = setting("held-out problems; the warm-up does not see them either")
    hidden_size: int = setting("width of the model")
    num_hidden_layers: int = setting("layers of the model")
    num_attention_heads: int = setting("attention heads of a layer")
    intermediate_size: int = setting("width of a layer's perceptron")
    rope_theta: float = setting("base of the rotary position embedding: the larger, the less a number's place counts")
    max_position_embeddings: int = setting("longest text in tokens, prompt and completion together")
    give_up_rate: float = setting("weight of the end of the search after a failed try; that of going on is the rest")
    fruitless_share: float = setting("share of searches with a target out of reach; they end after any of their tries")
    verdict_weight: float = setting("loss weight of ' no'; any other token has 1")
    yes_weight: float = setting("loss weight of ' yes'")
    value_weight: float = setting("loss weight of a value after an equals sign")
    curriculum: float = setting("share of the warm-up over which the longest search allowed grows")
    shortest_cap: int = setting("tries of the longest search allowed at the start")
    steps: int = setting("optimizer steps of the warm-up")
    batch_size: int = setting("searches in a step")
    learning_rate: float = setting("learning rate after warmup_steps; from there a cosine takes it to 0")
    weight_decay: float = setting("weight decay")
    warmup_steps: int = setting("steps over which the learning rate rises from 0")
    seed: int = setting("seed of the problems, of the weights and of the warm-up")


def build_tokenizer():
    """Return a byte-level tokenizer that encodes any text, and the prompt's fixed text in a few tokens.

    A prompt of three numbers takes 9 tokens, and each number up to 99 takes one.
    """
    from transformers import PreTrainedTokenizerFast

    prompt = fill_template(render_template(countdown.PROMPT, "base"), numbers="[\0, \0]", target="\0")
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
    """Return the Qwen2Config of the model."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_attention_heads,
        intermediate_size=args.intermediate_size,
        rope_parameters={"rope_type": "default", "rope_theta": args.rope_theta},
        max_position_embeddings=args.max_position_embeddings,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def combinations(x, y):
    """Return all (left, operator, right, value) of two numbers with a whole value in 0..99, in the order of search."""
    high, low = max(x, y), min(x, y)
    found = [(x, "+", y, x + y), (high, "-", low, high - low), (x, "*", y, x * y)]
    if low and high % low == 0:
        found.append((high, "/", low, high // low))
    return [combination for combination in found if combination[3] <= LARGEST]


def candidates(nums):
    """Yield the candidates of some numbers in the order of search: (value, text before it, its text, its answer)."""
    for line in search_lines([(number, str(number)) for number in nums]):
        yield from line


def search_lines(terms, before="\n"):
    """Yield the lines of a search, lists of candidates: join two terms in every way, and go on with what results.

    The joins of the last two terms are the candidates of one line. Whole, non-negative intermediate values are enough
    to solve every problem of three numbers. terms: list of (value, text); before: text before the line's first
    candidate.
    """
    for i, j in itertools.combinations(range(len(terms)), 2):
        (x, text), (y, other) = terms[i], terms[j]
        rest = [term for place, term in enumerate(terms) if place not in (i, j)]
        line = []
        for left, operator, right, value in combinations(x, y):
            equation = f"{left}{operator}{right} = {value}"
            answer = f"{text}{operator}{other}" if left == x else f"{other}{operator}{text}"
            if rest:
                yield from search_lines([(value, f"({answer})"), *rest], f"{before}{equation}: ")
            else:
                line.append((value, ", " if line else before, equation, answer))
        if line:
            yield line


def search(nums, target):
    """Return the candidates up to the first that hits the target, [] if none does."""
    tried = []
    for candidate in candidates(nums):
        tried.append(candidate)
        if candidate[0] == target:
            return tried
    return []


def fruitless_search(nums, targets, longest, rng):
    """Draw (target, candidates): one of `targets` that these numbers do not reach, and the first few candidates.

    Such searches show late candidates, because a search that succeeds seldom gets to them. longest: most candidates.
    """
    tried = list(candidates(nums))
    reached = {candidate[0] for candidate in tried}
    target = rng.choice([target for target in targets if target not in reached])
    return target, tried[: rng.randint(1, min(len(tried), longest))]


def write_trace(tried, solved):
    """Return the completion that tries these candidates and answers with the last one, right if `solved`."""
    text = " no".join(before + candidate for _, before, candidate, _ in tried)
    verdict = "yes" if solved else "no"
    answer = tried[-1][3]
    return f"{text} {verdict}{GIVE_UP}{answer}</answer>"


def warm_up_examples(problems, tokenizer, args, rng):
    """Yield (input ids, loss weights, loss weights of giving up) of a prompt and its completion, without end.

    The three are lists of equal length. problems: list of (nums, target) with nums in the order of the prompt. Long
    searches enter over the first `curriculum` of the warm-up: " yes" is rare in them, and the model learns last to
    distinguish it from " no".
    """
    template = render_template(countdown.PROMPT, "base")
    targets = sorted({target for _, target in problems})
    searches = [(nums, target, search(nums, target)) for nums, target in problems]
    searches.sort(key=lambda each: len(each[2]))
    lengths = [len(tried) for _, _, tried in searches]
    for drawn in itertools.count():
        progress = min(1.0, drawn / max(1, args.curriculum * args.steps * args.batch_size))
        longest = args.shortest_cap + progress * (lengths[-1] - args.shortest_cap)
        nums, target, tried = searches[rng.randrange(bisect.bisect_right(lengths, longest))]
        solved = rng.random() >= args.fruitless_share
        if not solved:
            target, tried = fruitless_search(nums, targets, round(longest), rng)
        prompt_ids = tokenizer(fill_template(template, numbers=list(nums), target=target))["input_ids"]
        completion_ids = tokenizer(write_trace(tried, solved))["input_ids"] + [tokenizer.eos_token_id]
        weights, give_up_weights = loss_weights(completion_ids, tokenizer, args)
        nothing = [0.0] * len(prompt_ids)
        yield prompt_ids + completion_ids, nothing + weights, nothing + give_up_weights


def loss_weights(ids, tokenizer, args):
    """Return (loss weights of a completion's own ids, loss weights of giving up there): two lists of floats.

    After a failed try both are right, to continue and to give up, at give_up_rate, whatever this trace does next.
    """
    no, yes, equals, give_up = tokenizer.convert_tokens_to_ids([" no", " yes", " = ", GIVE_UP])
    weights, give_up_weights = [], []
    before = None
    for token in ids:
        weight = {no: args.verdict_weight, yes: args.yes_weight}.get(token, 1.0)
        if before == equals:
            weight = args.value_weight
        give_up_weight = 0.0
        if before == no:
            give_up_weight = args.give_up_rate
            weight = 0.0 if token == give_up else 1.0 - args.give_up_rate
        weights.append(weight)
        give_up_weights.append(give_up_weight)
        before = token
    return weights, give_up_weights


def padded_batches(examples, batch_size, rng, pad_id, buffered=8):
    """Yield batches of examples of similar length without end: ids and both weights, three padded (B, T) tensors."""
    while True:
        pool = sorted(itertools.islice(examples, buffered * batch_size), key=lambda example: len(example[0]))
        for start in rng.sample(range(0, len(pool), batch_size), buffered):
            ids, weights, give_up_weights = zip(*pool[start : start + batch_size], strict=True)
            yield padded(ids, pad_id), padded(weights, 0.0), padded(give_up_weights, 0.0)


def padded(rows, fill):
    """Return the (B, T) tensor of B lists, padded on the right with `fill`."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices, in float32.

    Five Newton-Schulz steps orthogonalise the momentum, and the result is scaled to AdamW's typical update (Liu et al.
    2025). torch.optim.Muon does the same in bfloat16. A CPU without native bfloat16 multiplies 27 times slower in it:
    363 instead of 23 ms a step for this model. The rest of a step takes about 120 ms.
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
    """Train `model` on searches, in place. problems: list of (nums, target)."""
    from transformers import get_cosine_schedule_with_warmup

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
    give_up = tokenizer.convert_tokens_to_ids(GIVE_UP)
    bar = tqdm(range(args.steps), desc="warm-up", mininterval=2)
    for _ in bar:
        ids, weights, give_up_weights = next(data)
        # (B, T-1, V); padding on the right needs no mask in a causal model
        logps = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        weights, give_up_weights = weights[:, 1:], give_up_weights[:, 1:]  # (B, T-1)
        own = logps.gather(2, ids[:, 1:, None]).squeeze(2) * weights
        giving_up = logps[:, :, give_up] * give_up_weights
        loss = -(own + giving_up).sum() / (weights + give_up_weights).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*optimizers, *schedules):
            each.step()
        model.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def read_settings(program, kinds, argv, description):
    """Return an object of each of the dataclasses `kinds` with the settings of configs/<program>.yaml and the flags.

    Exit with one line if they cannot be read.
    """
    if "--config" not in argv:
        argv = ["--config", str(ROOT / "configs" / f"{program}.yaml"), *argv]
    parser = TrlParser(kinds, prog=f"python -m r1zero.{program}", allow_abbrev=False, description=description)
    try:
        *found, unknown = parser.parse_args_and_config(argv, return_remaining_strings=True)
    except (OSError, ValueError, yaml.YAMLError) as error:
        sys.exit(f"r1zero.{program}: the settings cannot be read ({error})")
    if unknown:
        sys.exit(f"r1zero.{program}: found {' '.join(unknown)}: no such setting; --help lists them all")
    return found


def make_problems(program, output_dir, data_dir, words):
    """Make the problems if data_dir has none. Exit with a line if output_dir has a model already.

    words: flags of preprocess.py countdown.
    """
    if not Path(data_dir, "test.parquet").exists():
        command = [sys.executable, str(ROOT / "preprocess.py"), "countdown", "--local_dir", data_dir]
        written = subprocess.run([*command, *words])
        if written.returncode:  # its own message is above
            sys.exit(written.returncode)
    if Path(output_dir, "config.json").exists():
        sys.exit(f"r1zero.{program}: {output_dir} is there already: remove it, or name another with --output_dir")


def read_arguments(argv):
    """Return TinyModelArguments of the YAML and the flags."""
    description = (
        "Make the embedded default's problems and its model, by a supervised warm-up of a few minutes. --config FILE "
        "names another YAML with all of these settings than configs/tiny_model.yaml."
    )
    (args,) = read_settings("tiny_model", (TinyModelArguments,), argv, description)
    return args


def main(argv=None):
    """Make the problems if they do not exist, and the model. Exit with a line if the model exists already."""
    args = read_arguments(sys.argv[1:] if argv is None else argv)
    words = ["--num_operands", "3"]
    for name in ("max_number", "max_target", "train_size", "test_size", "seed"):
        words += [f"--{name}", str(getattr(args, name))]
    make_problems("tiny_model", args.output_dir, args.data_dir, words)

    from transformers import Qwen2ForCausalLM

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

    # Rename at the end, so that a folder of the final name is a whole model
    part = Path(f"{args.output_dir}.part")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    os.rename(part, args.output_dir)
    print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a model or a problem writes what a terminal may lack
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("r1zero.tiny_model: stopped before the model was written; the same command starts again")
