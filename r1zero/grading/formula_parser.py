r"""Reads a formula in LaTeX as math-verify does, or not at all.

The parser follows the grammar of math-verify's own (PS.g4 of https://github.com/huggingface/latex2sympy2_extended),
which takes up to half a second for what this one reads in a millisecond. It knows plain formulas alone. A token
that is not known here, or that has a second meaning there, leaves the whole formula unread.
"""

import re

DEEPEST = 30  # brackets, fractions, exponents and arguments inside one another
LETTER = (
    r"(?:[a-ce-zA-Z]|d(?!\s*\\?[a-zA-Z])|\\(?:alpha|beta|delta|Delta|varepsilon|epsilon|zeta|eta|vartheta|theta|Theta"
    r"|iota|kappa|lambda|Lambda|mu|nu|xi|Xi|pi|varrho|rho|varsigma|sigma|Sigma|tau|upsilon|Upsilon|varphi|phi|Phi|chi"
    r"|psi|Psi|omega|Omega|hbar|ell|prime)(?![a-zA-Z]))"
)
TOKEN = re.compile(
    rf"""(?P<space>\s+|\\[,:;!]|\\q?quad(?![a-zA-Z]))
        |(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)
        |(?P<differential>d\s*(?:[a-zA-Z]|\\(?:theta|omega)(?![a-zA-Z])))
        |(?P<name>(?:(?![eE]){LETTER}|\\(?:dot|ddot|bar|hat|tilde|vec)\{{{LETTER}\}})   # E has two meanings, e is none
            (?:\s*_\s*(?:[0-9]+(?!\.?[0-9])|{LETTER}|\{{\s*(?:[0-9a-zA-Z]+|{LETTER}|\\text\s*\{{[a-zA-Z]+\}})\s*\}}))?)
        |(?P<function>\\(?:sin|cos|tan|ln|log|exp|arcsin)(?![a-zA-Z]))
        |(?P<unreadable>E\s*_|\.|\\odot(?![a-zA-Z]))   # on which math-verify's own parser fails
        |(?P<sign>\\(?:frac|sqrt|cdot|times|div)(?![a-zA-Z])|\\[{{}}]|[-+*/^_(){{}}\[\],=e])""",
    re.VERBOSE,
)
CLOSING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
DERIVATIVE = "derivative "  # begins the key of one
EULER = ("call", "exp", ("number", "1"))


class NotRead(Exception):
    """An answer, or a value, that is left to computer algebra."""


def tokens_of(text):
    """The tokens of a normalised answer, a list of (kind, text), which ends in ("end", "")."""
    tokens, position = [], 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise NotRead(text[position:])
        if match.lastgroup != "space":
            tokens.append((match.lastgroup, match[0]))
        position = match.end()
    return [*tokens, ("end", "")]


class Parser:
    """Turns the tokens of a formula into a tree of tuples, in one pass from left to right.

    A node is ("number", text), ("name", key), ("sum" or "product", nodes), ("negative" or "inverse", node), ("power",
    base, exponent), ("log", node, base) or ("call", function, node), where the function is one of sin, cos, tan,
    arcsin and exp.
    """

    def __init__(self, tokens):
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.exponents = 0  # that the next token stands in

    def peek(self, ahead=0):
        """The text of the next token, or of one of those after it."""
        return self.tokens[min(self.position + ahead, len(self.tokens) - 1)][1]

    def kind(self, ahead=0):
        """The kind of the next token, or of one of those after it."""
        return self.tokens[min(self.position + ahead, len(self.tokens) - 1)][0]

    def take(self, *wanted):
        """The text of the next token, which is passed. NotRead where it is none of those wanted."""
        text = self.peek()
        if wanted and text not in wanted:
            raise NotRead(text)
        self.position += 1
        return text

    def whole(self):
        """The tree of all tokens."""
        node = self.sum()
        if self.kind() != "end":
            raise NotRead(self.peek())
        return node

    def sum(self):
        """Terms with + and - between them."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise NotRead("too deep")
        terms = [self.product()]
        while self.peek() in ("+", "-"):
            sign = self.take()
            term = self.product()
            terms.append(term if sign == "+" else ("negative", term))
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("sum", terms)

    def product(self, in_argument=False):
        r"""Factors with signs of multiplication or division between them, from left to right: 1/2x is 1/(2x).

        in_argument: whether this is the argument of a function without parentheses, as in \sin 2t/3.
        """
        factors = [self.signed(in_argument)]
        while self.peek() in ("*", "/", r"\cdot", r"\times", r"\div"):
            divides = self.take() in ("/", r"\div")
            factor = self.signed(in_argument)
            factors.append(("inverse", factor) if divides else factor)
        return factors[0] if len(factors) == 1 else ("product", factors)

    def signed(self, in_argument):
        """Factors side by side, after any number of signs."""
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        factors = [self.power(may_be_function=True)]
        while self.begins_factor(may_be_function=not in_argument):
            factors.append(self.power(may_be_function=not in_argument))
        if len(factors) > 1 and is_number(factors[-1]) and is_number(factors[-2]):
            raise NotRead("a mixed number")  # math-verify adds them: 2(3) is 5
        node = factors[0] if len(factors) == 1 else ("product", factors)
        return ("negative", node) if negative else node

    def begins_factor(self, may_be_function):
        """Whether the next token begins another factor."""
        if self.kind() in ("number", "name", "differential"):
            return True
        if self.kind() == "function" or self.peek() in ("e", r"\sqrt"):
            return may_be_function
        return self.peek() in ("(", "[", "{", r"\frac")

    def power(self, may_be_function):
        """A factor with its exponent, if it has one."""
        is_name, is_e = self.kind() == "name", self.peek() == "e"
        base = self.base(may_be_function)
        if self.peek() == "^" and not is_e:
            base = ("power", base, self.exponent())
            if is_name and self.peek() in ("(", "["):
                self.refuse_single_argument()
        if self.peek() in ("^", "_") or (is_name and self.peek() == "{"):
            raise NotRead(self.peek())
        return base

    def exponent(self):
        """What stands after a ^."""
        self.take("^")
        if self.peek() == "{":
            self.exponents += 1
            node = self.bracketed()
            self.exponents -= 1
            return node
        if self.kind() == "number":
            return ("number", self.take())
        if self.kind() == "name" and self.peek(1) not in ("(", "["):
            return self.name()
        raise NotRead(self.peek())

    def base(self, may_be_function):
        """A factor without its exponent; e has its exponent with it."""
        text = self.peek()
        if self.kind() == "number":
            return ("number", self.take())
        if self.kind() == "name":
            return self.name_or_call(may_be_function)
        if self.kind() == "differential":
            return ("name", stripped(self.take()))
        if self.kind() == "function":
            return self.call()
        if text == "e":
            self.take()
            exponent = self.exponent() if self.peek() == "^" else ("number", "1")
            return ("call", "exp", exponent)
        if text == r"\sqrt":
            return self.root()
        if text == r"\frac":
            return self.fraction()
        return self.bracketed("(", "[", "{")

    def bracketed(self, *openings):
        """What stands between two brackets."""
        closing = CLOSING[self.take(*openings)]
        node = self.sum()
        self.take(closing)
        return node

    def name(self):
        """A variable or pi. math-verify does not tell capital letters from small ones."""
        text = self.take()
        letter, _, below = stripped(text).partition("_")
        if letter == "I":
            raise NotRead("the imaginary unit")
        return ("name", f"{letter}_{below}".lower().removesuffix("_"))

    def name_or_call(self, may_be_function):
        """A variable, or x(t), a function of one name or number, which is another variable as far as we know."""
        if self.peek(1) not in ("(", "[") or self.kind(2) not in ("name", "number"):
            return self.name()
        if self.peek(3) != CLOSING[self.peek(1)]:
            self.position += 1
            self.refuse_single_argument()
            self.position -= 1
            return self.name()
        if not may_be_function:
            raise NotRead("a function or a product")
        function = stripped(self.take())
        self.take()
        if self.kind() == "number" and not self.peek().isdecimal():
            raise NotRead("a function of a decimal number")
        _, argument = self.name() if self.kind() == "name" else ("number", int(self.take()))
        self.take()
        return ("name", f"{function}({argument})")

    def refuse_single_argument(self):
        """Refuses a bracket after a name with an exponent: x^2(t) and x(t^2) are read as functions."""
        if self.kind(1) in ("name", "number") and self.peek(2) in ("^", ")", "]"):
            raise NotRead("a function or a product")

    def call(self):
        r"""A function: \sin x, \sin(x), \sin^2 x, \log_2 x. Without parentheses, the argument goes on: \sin 2t/3."""
        function = self.take()[1:]
        base = ("number", "10") if function == "log" else EULER
        if self.peek() == "_" and function == "log":
            self.take()
            base = self.bracketed("{") if self.peek() == "{" else ("number", self.take_number())
        power = None
        if self.peek() == "^":
            power = self.exponent()
            if power[0] != "number" or power == ("number", "0"):
                raise NotRead("a power of a function")
        if function == "log" and self.exponents:
            raise NotRead("a logarithm in an exponent")  # there math-verify forgets its base
        self.exponents += function == "exp"
        argument = self.argument()
        self.exponents -= function == "exp"
        node = ("log", argument, base) if function in ("log", "ln") else ("call", function, argument)
        return node if power is None else ("power", node, power)

    def argument(self):
        """What a function is taken of."""
        if self.peek() == "(":
            return self.bracketed()
        self.depth += 1
        if self.depth > DEEPEST:
            raise NotRead("too deep")
        node = self.product(in_argument=True)
        self.depth -= 1
        return node

    def take_number(self):
        """The text of the next token, which must be a number."""
        if self.kind() != "number":
            raise NotRead(self.peek())
        return self.take()

    def fraction(self):
        r"""\frac{a}{b}, or a derivative \frac{dx}{dt}, which is another variable as far as we know."""
        self.take(r"\frac")
        kinds = [self.kind(ahead) for ahead in (1, 4)]
        if kinds == ["differential"] * 2 and (self.peek(2), self.peek(5)) == ("}", "}"):
            above, below = self.peek(1).lower(), self.peek(4)
            if above == below.lower():
                raise NotRead("a derivative by itself")
            self.position += 6
            return ("name", DERIVATIVE + stripped(f"{above}/{below}"))
        above = self.bracketed("{")
        if self.kind(1) == "differential" and self.peek(2) == "}":
            raise NotRead("a derivative")
        return ("product", [above, ("inverse", self.bracketed("{"))])

    def root(self):
        r"""\sqrt{x} or \sqrt[n]{x}."""
        self.take(r"\sqrt")
        degree = self.bracketed() if self.peek() == "[" else ("number", "2")
        return ("power", self.bracketed("{"), ("inverse", degree))


def stripped(text):
    """A name without spaces and braces."""
    return re.sub(r"[\s{}]", "", text)


def names_in(node):
    """The keys of all variables in a node, a set of strs."""
    match node:
        case ("name", key):
            return {key}
        case ("number", _):
            return set()
        case ("sum" | "product", parts):
            return set().union(*map(names_in, parts))
        case ("call", _, inner):
            return names_in(inner)
    return set().union(*map(names_in, node[1:]))


def is_number(node):
    """Whether math-verify may hold a node for a rational number."""
    match node:
        case ("number", _):
            return True
        case ("negative" | "inverse", inner) | ("call", "exp", inner):
            return is_number(inner)
        case ("sum" | "product", parts):
            return all(is_number(part) for part in parts)
    return False


def split(tokens, *separators):
    """The tokens between separators that stand outside of brackets, each ending in ("end", "")."""
    openings, parts, start = [], [], 0
    for position, (_, text) in enumerate(tokens):
        if text in CLOSING:
            openings.append(text)
        elif openings and text == CLOSING[openings[-1]]:
            openings.pop()
        elif not openings and text in separators or text == "":
            parts.append([*tokens[start:position], ("end", "")])
            start = position + 1
    return parts


def elements_of(tokens):
    """The tokens of each element of a list, with brackets around it or not: [tokens] for a formula alone."""
    bare = [*tokens[1:-2], ("end", "")]
    if tokens[0][1] in CLOSING and tokens[-2][1] == CLOSING[tokens[0][1]]:
        elements = split(bare, ",")
        if len(elements) > 1 or tokens[0][1] == r"\{":
            return elements
    return split(tokens, ",")
