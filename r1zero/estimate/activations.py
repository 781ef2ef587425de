"""What one forward and backward pass takes of a card beside the weights, in bytes, moment by moment.

The sizes are those of the decoder layer of Qwen2 and Llama in transformers, with sdpa attention and a mask, and of the
head of TRL 1.16. tests/test_activations.py compares them with what torch allocates on a CPU: within 15 %.
"""

from dataclasses import dataclass, replace

# TRL never holds the logits of all tokens. It makes them in tiles, and makes them again in the backward pass:
# TOKEN_CHUNK_SIZE of trl/kernels/chunked_logprob.py, and _CHUNKED_LOGPROB_CHUNK_SIZE of trl/trainer/utils.py. The tile
# has its whole width where the vocabulary is smaller, too.
TILE_TOKENS, TILE_ENTRIES = 4096, 32768


@dataclass
class Pass:
    """One pass over a batch of sequences, and the bytes of a number in it.

    config: the model's, of its text; layer_parameters: int, of one decoder layer; width: tokens of a sequence.
    rows: sequences that go through the model at a time, at most; all others of the batch wait for their turn.
    compute: bytes of what matrices multiply; stream: bytes of what goes from layer to layer. autocast: whether
    torch.autocast casts what is multiplied; adapters: whether LoRA's are trained and all else is frozen.
    checkpointing: whether a layer keeps its input alone, and computes the rest again in the backward pass.
    """

    config: object
    layer_parameters: int
    sequences: int
    rows: int
    width: int
    compute: int
    stream: int
    autocast: bool
    adapters: bool
    checkpointing: bool

    @property
    def tokens(self):
        return self.sequences * self.width

    @property
    def casts(self):
        """Whether weights are cast to what they are multiplied in."""
        return self.compute != self.stream

    @property
    def turn(self):
        """The Pass over the sequences that go through the model at a time."""
        return replace(self, sequences=min(self.sequences, self.rows))


def layer(run):
    """What one layer keeps for its backward pass: the tensors that autograd saves."""
    hidden, inner = run.config.hidden_size, run.config.intermediate_size
    attention = run.config.num_attention_heads * head_size(run.config)
    norms = 2 * 4 * hidden  # Qwen2RMSNorm: its input in float32 ...
    if not run.adapters:
        norms += 2 * run.stream * hidden  # ... and what the weight is multiplied with, where the weight is trained
    # The inputs of query, key and value, and of gate and up: one for all, unless autocast makes a copy for each.
    # Beside an adapter, peft casts each to the adapter's float32 and autocast casts it back, that of the output too.
    inputs = 2
    if run.adapters and run.autocast:
        inputs = 6
    elif run.casts:
        inputs = 5
    # Attention keeps query, result, and keys and values repeated for all heads, which sdpa with a mask wants; the mask
    # is made into numbers. The MLP keeps gate, its activation, up, and their product.
    kept = norms + run.compute * (inputs * hidden + 4 * attention + 4 * inner + run.width)
    return run.tokens * kept


def backward(run):
    """What the backward pass of a layer holds beside what the layer kept: gradients on their way."""
    inner, hidden = run.config.intermediate_size, run.config.hidden_size
    held = 2 * run.compute * inner + (run.stream + run.compute) * hidden
    if run.adapters and run.autocast:
        held += 4 * inner  # peft's cast of the MLP's inner vector to float32
    return run.tokens * held


def kept_by_all(run):
    """What all layers together keep until the backward pass comes to them, and the mask of all."""
    mask = run.tokens * run.width
    if run.checkpointing:
        return mask + run.config.num_hidden_layers * run.tokens * run.config.hidden_size * run.stream
    return mask + run.config.num_hidden_layers * layer(run)


def kept_by_other_turns(run):
    """What the other turns of a batch hold while one of them has its backward pass, which they have one by one.

    The first finds what all others keep. The second finds that of the rest, and beside it the first one's gradients of
    all layers: autograd adds up those of all turns, and hands them on once they are complete.
    """
    turn = run.turn
    if turn.sequences == run.sequences:
        return 0
    # Beside its layers, a turn keeps the last layer's states, and those of them that are scored
    one = kept_by_all(turn) + 2 * turn.tokens * run.config.hidden_size * run.stream
    others = one * (run.tokens - turn.tokens) // turn.tokens
    gradients = 0 if run.adapters else run.stream * run.config.num_hidden_layers * run.layer_parameters
    return others + max(0, gradients - one)


def cast_weights(run):
    """The copies of weights that torch.autocast makes to multiply with them, as (forward, backward).

    It caches the copy of a trained float32 weight until the outermost autocast ends, which is around the whole forward
    pass. A copy of a frozen weight is made for each use. Without checkpointing, autograd keeps either for the backward
    pass; with it, a layer that is computed again makes its own.
    """
    if not (run.autocast and run.casts):
        return 0, 0
    one = run.compute * run.layer_parameters
    every = run.config.num_hidden_layers * one
    if not run.checkpointing:
        return every, every
    return (one if run.adapters else every), one


def head(run):
    """What TRL's head takes, as (forward, backward): a tile of logits, and gradients that are summed in float32."""
    hidden = run.config.hidden_size
    forward = min(run.tokens, TILE_TOKENS) * TILE_ENTRIES * run.compute
    if run.casts:
        # The tile's part of the weights, cast
        forward += min(run.config.vocab_size, TILE_ENTRIES) * hidden * run.compute
    forward += 2 * run.tokens * hidden * run.stream  # the last layer's states, and those of them that are scored
    weights = head_weights(run)
    copied = run.stream * weights if run.stream < 4 else 0  # the gradient in the weights' own type
    return forward, forward + run.tokens * hidden * 4 + 4 * weights + copied


def head_weights(run):
    """How many weights of the head are trained: none with LoRA."""
    return 0 if run.adapters else run.config.vocab_size * run.config.hidden_size


def update_parts(run):
    """What a forward and backward pass takes, as a dict of part to bytes. They are not all there at once."""
    turn = run.turn
    one_layer = layer(turn) if run.checkpointing else 0
    return {
        "activations": kept_by_other_turns(run) + kept_by_all(turn) + one_layer + backward(turn),
        "head": head(turn)[1],
        "cast weights": cast_weights(run)[0],
    }


def update_moments(run):
    """Bytes at each moment of a forward and backward pass that can be its peak, as a dict."""
    turn = run.turn
    kept = kept_by_other_turns(run) + kept_by_all(turn)
    casts, casts_of_layer = cast_weights(turn)
    forward, backward_of_head = head(turn)
    one_layer = backward(turn) + (layer(turn) if run.checkpointing else 0)
    # Where the head is the embedding too, its gradient waits until the embedding's is there
    embedding = run.stream * head_weights(run)
    waiting = embedding if run.config.tie_word_embeddings else 0
    return {
        "end of the forward pass": kept + casts + forward,
        "backward pass of the head": kept + backward_of_head + (0 if run.checkpointing else casts),
        "backward pass of the last layer": kept + one_layer + casts_of_layer + waiting,
        "gradient of the embedding": waiting + embedding,
    }


def evaluation(run):
    """Bytes of a pass without gradients, of which only the sequences of one turn take anything.

    What TRL keeps of each token of the batch (ids, masks, probabilities) is left out: 43 bytes, measured without vLLM.
    """
    turn = run.turn
    inner, hidden = run.config.intermediate_size, run.config.hidden_size
    # Gate, up and their product, beside the residual stream, the embeddings and a norm; the mask of all
    held = 3 * run.compute * inner + 4 * run.stream * hidden + run.width
    if run.adapters:
        held += run.compute * (inner + 2 * hidden)  # peft's casts
    casts = 0 if run.adapters else cast_weights(turn)[0]  # of frozen weights, one is there at a time
    return casts + max(turn.tokens * held, head(turn)[0])


def head_size(config):
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
