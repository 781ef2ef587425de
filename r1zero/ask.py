"""Ask a model a problem, and see its answer as it writes it, with the verdict of the task's reward below.

    python -m r1zero.ask --model outputs/tiny_cpu "3 5 7 -> 16"
    python -m r1zero.ask --model outputs/multiply --task multiply "37 * 48"
    python -m r1zero.ask --model outputs/tiny_cpu                    # asks for problems until Ctrl-D

The folder of a run, of a checkpoint or of a LoRA adapter works, and a hub id. The prompt is that of preprocess.py.
`--task none` takes the text itself as the prompt, and gives no verdict.
"""

import argparse
import contextlib
import re
import sys
from typing import NamedTuple

import torch
from transformers import TextStreamer, set_seed

from r1zero.evaluate import engines
from r1zero.tasks import countdown, multiplication
from r1zero.tasks.prompts import Prompt, fill_template, render_template
from r1zero.training import reward_functions


class Task(NamedTuple):
    """A task: its prompt, what a problem looks like (a pattern, an example), and the function that scores it."""

    prompt: Prompt
    pattern: str
    example: str
    reward: str


TASKS = {
    "countdown": Task(countdown.PROMPT, r"(\d+(?:[ ,]+\d+)+) *(?:->|=) *(\d+)", "3 5 7 -> 16", "countdown_reward"),
    "multiply": Task(multiplication.PROMPT, r"(\d+) *[*x] *(\d+)", "37 * 48", "multiplication_reward"),
}


def read_arguments(argv):
    parser = argparse.ArgumentParser("python -m r1zero.ask", description="Ask a model a problem.", allow_abbrev=False)
    parser.add_argument("problems", nargs="*", help='such as "3 5 7 -> 16"; without one they are asked for')
    parser.add_argument("--model", required=True, help="a folder or a hub id")
    parser.add_argument("--task", choices=(*TASKS, "none"), default="countdown", help="none: the text is the prompt")
    forms = ("base", "chat")
    parser.add_argument("--template", choices=forms, default="base", help="of the prompt, as in preprocess.py")
    parser.add_argument("--max_completion_length", type=int, default=1024, help="tokens")
    parser.add_argument("--temperature", type=float, default=1.0, help="1, as in training; 0: the likeliest token")
    parser.add_argument("--seed", type=int, help="of sampling; without one each answer is another")
    return parser.parse_args(argv)


def read_problem(text, name):
    """Return the slots of a task's template and the columns of its data (dicts) for the problem that a text says.

    name: of the task, "none" for the text itself. Raises ValueError if the text says no problem of the task.
    """
    if name not in TASKS:
        return {"text": text}, {}
    found = re.fullmatch(TASKS[name].pattern, text.strip())
    if found is None:
        example = TASKS[name].example
        raise ValueError(f'found {text!r}, wanted a problem of {name}, such as "{example}", or --task none')
    if name == "countdown":
        nums, target = [int(number) for number in re.findall(r"\d+", found[1])], int(found[2])
        return {"numbers": nums, "target": target}, {"nums": nums, "target": target}
    left, right = int(found[1]), int(found[2])
    return {"left": left, "right": right}, {"product": str(left * right)}


def answer(model, loaded, prompt, args):
    """Print a completion while it is sampled, and return it. Raises ValueError if the context has no room for it."""
    ids = model.tokenizer(prompt, return_tensors="pt").to(loaded.device)
    length = ids["input_ids"].size(1)
    longest = min(args.max_completion_length, model.context - length)
    loaded.generation_config = engines.generation_config(model, args.temperature, longest)
    print(prompt, end="", flush=True)
    streamer = TextStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    tokens = loaded.generate(**ids, streamer=streamer)[0, length:]
    return model.tokenizer.decode(tokens, skip_special_tokens=True)


def main(argv=None):
    args = read_arguments(argv)
    task = TASKS.get(args.task)
    try:
        for text in args.problems:
            read_problem(text, args.task)
        model = engines.read_model(args.model)
        template = render_template(task.prompt, args.template, model.tokenizer) if task else "{text}"
    except ValueError as error:
        sys.exit(f"r1zero.ask: {error}")
    if args.seed is not None:
        set_seed(args.seed)
    loaded = engines.load(model, "float32" if model.is_adapter else "auto")
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    for text in args.problems or typed(args.task):
        try:
            slots, columns = read_problem(text, args.task)
            prompt = fill_template(template, **slots)
            completion = answer(model, loaded, prompt, args)
        except ValueError as error:
            print(error)
            continue
        if task:
            columns = {name: [value] for name, value in columns.items()}
            function = reward_functions.ours()[task.reward]
            (reward,), (verdict,) = reward_functions.score(function, [prompt], [completion], columns)
            stated = "" if verdict.answer is None else f": {verdict.answer.strip()}"
            print(f"\n{verdict.status}{stated}, reward {reward:g}\n")


def typed(task):
    """Yield what the user types, until Ctrl-D."""
    with contextlib.suppress(EOFError):
        while True:
            yield input(f"{task}> ")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a model or a problem writes what a terminal may lack
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nr1zero.ask: stopped by Ctrl-C")
