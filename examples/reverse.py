"""Reversing words: an answer made letter by letter, with `lamina.train`.

    python examples/reverse.py

    F=examples/reverse.py
    lamina train random-20000 --domain $F:Reverse --task $F:Tokens --net $F:Seq2Seq --epochs 10 --name reverse
    lamina predict runs/reverse words.txt --domain $F:Reverse --task $F:Tokens --net $F:Seq2Seq

Instead of `random-20000`, a text file: a word a line, and after a tab its answer where that is not the word reversed.
The engine knows nothing of letters. It is told three things, and this file is all of them:

    Reverse     a kind of input: words -> numbers; how the net is asked in training, and how it answers
    Tokens      a kind of answer: words -> numbers -> words; what is minimised, and the scores
    Seq2Seq     the net, plain PyTorch

Letters of the shapes: B batch, S letters of the longest input, T letters of the longest answer, K kinds of token.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lamina.batches import Batch
from lamina.domains.base import Domain, Encoded
from lamina.errors import DataError, UsageError, rows
from lamina.keyed import number
from lamina.sources import Examples, Source
from lamina.targets.base import Answers, Measure, Target

PAD, BEGIN, END, FIRST = 0, 1, 2, 3  # tokens that are no letters; the letters follow


# --- The net ----------------------------------------------------------------------------------------------------------


class Seq2Seq(nn.Module):
    """A recurrent net reads the word, another writes the answer and looks back at what was read.

    Encoder: a GRU in both directions. Decoder: a GRU with the attention of Luong et al. (2015), the "general" score.
    `letters` is the size of the alphabet: as many as training has, or more.
    """

    def __init__(self, letters: int = 26, width: int = 96, embedding: int = 32):
        super().__init__()
        self.read = nn.Embedding(FIRST + letters, embedding, padding_idx=PAD)
        self.write = nn.Embedding(FIRST + letters, embedding, padding_idx=PAD)
        self.encoder = nn.GRU(embedding, width, batch_first=True, bidirectional=True)
        self.decoder = nn.GRU(embedding, width, batch_first=True)
        self.begin = nn.Linear(2 * width, width)
        self.key = nn.Linear(2 * width, width, bias=False)
        self.join = nn.Linear(3 * width, width)
        self.out = nn.Linear(width, FIRST + letters)

    def encode(self, word: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """word (B, S) -> what is remembered of it, and the decoder's first state (1, B, width)."""
        lengths = (word != PAD).sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.read(word), lengths, batch_first=True, enforce_sorted=False)
        states, ends = self.encoder(packed)  # packed: so that the padding is never read
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=word.shape[1])
        state = torch.tanh(self.begin(torch.cat([ends[0], ends[1]], 1)))  # (B, 2 width) -> (B, width)
        return (states, self.key(states), word == PAD), state[None]

    def decode(self, tokens: Tensor, memory: tuple[Tensor, Tensor, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, T) -> logits of the token after each (B, T, K), and the state after the last."""
        states, keys, padding = memory  # (B, S, 2 width), (B, S, width), (B, S)
        own, state = self.decoder(self.write(tokens), state)  # (B, T, width)
        match = (own @ keys.transpose(1, 2)).masked_fill(padding[:, None], -torch.inf)  # (B, T, S)
        seen = match.softmax(2) @ states  # (B, T, 2 width)
        return self.out(torch.tanh(self.join(torch.cat([own, seen], 2)))), state

    def forward(self, word: Tensor, tokens: Tensor) -> Tensor:
        """word (B, S), the answer so far (B, T) -> logits of the token after each of its tokens (B, T, K)."""
        memory, state = self.encode(word)
        return self.decode(tokens, memory, state)[0]


def greedy(net: Any, word: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Write the likeliest token, read it, write the next, until END. word (B, S) -> tokens (B, most), PAD after END, and
    the net's probability of the whole answer (B,)."""
    memory, state = net.encode(word)
    token, tokens = word.new_full((len(word), 1), BEGIN), word.new_full((len(word), most), PAD)
    sure = torch.zeros(len(word), device=word.device)  # (B,) log-probability of what was written
    ended = word.new_zeros(len(word), dtype=torch.bool)
    for t in range(most):
        logits, state = net.decode(token, memory, state)  # (B, 1, K)
        best = logits[:, 0].log_softmax(1).max(1)
        sure += best.values.masked_fill(ended, 0.0)
        tokens[:, t] = best.indices.masked_fill(ended, PAD)
        ended |= best.indices == END
        if ended.all():
            break
        token = best.indices[:, None]
    return tokens, sure.exp()


# --- Words and numbers ------------------------------------------------------------------------------------------------


def alphabet(words: np.ndarray) -> str:
    """The letters that occur, sorted."""
    return "".join(sorted(set("".join(words.tolist()))))


def tokenize(words: Any, letters: str, what: str) -> list[list[int]]:
    """Words -> the numbers of their letters. DataError for letters that training did not have."""
    place = {letter: FIRST + k for k, letter in enumerate(letters)}
    bad = [k for k, word in enumerate(words) if not word or any(letter not in place for letter in word)]
    if bad:
        raise DataError(
            f"{len(bad)} {what} are empty or have letters that training has not, such as {str(words[bad[0]])!r}: "
            f"{rows(bad)}.",
            expected=f"words of the letters {letters}",
            fix="leave these out, or train again with words that have these letters",
        )
    return [[place[letter] for letter in word] for word in words]


def padded(tokens: list[list[int]]) -> Tensor:
    """Lists of numbers -> int64 (N, longest), PAD at their ends."""
    table = np.full((len(tokens), max(map(len, tokens), default=0)), PAD)
    for row, numbers in zip(table, tokens, strict=True):
        row[: len(numbers)] = numbers
    return torch.from_numpy(table)


# --- The kind of input ------------------------------------------------------------------------------------------------


@dataclass
class Reverse(Domain):
    """Words. The fields are what is learned from the training split and kept with the run."""

    name: ClassVar[str] = "reverse"

    letters: str = ""  # of the training words

    def read(self, source: Any, **options: Any) -> Source:
        """`random-20000`, the path of a text file, a list of words, or (words, answers) -> examples. `valid` and `test`
        among the options are such sources too."""
        if strange := options.keys() - {"valid", "test"}:
            raise UsageError(f"Words are read without {' and '.join(sorted(strange))}.")
        name, words, answers = self._words(source)
        about = f"{len(words):,} words of up to {max(map(len, words))} letters"
        opened = Source(
            name, Examples((words,), answers), reopen=name if isinstance(source, str) else None, about=about
        )
        for part, given in options.items():
            other = self.read(given)
            setattr(opened, part, other.train)
            opened.reopen = other.reopen and opened.reopen
        return opened

    def _words(self, source: Any) -> tuple[str, np.ndarray, np.ndarray]:
        if not isinstance(source, (str, Path)):
            words, answers = source if isinstance(source, tuple) else (source, [word[::-1] for word in source])
            return "words in memory", np.asarray(words), np.asarray(answers)
        text = str(source)
        if text.startswith("random-") and text[7:].isdecimal():
            words = random_words(int(text[7:]))
            return text, words, np.array([word[::-1] for word in words])
        if not Path(text).is_file():
            raise UsageError(f"There is no file {text!r}.", expected="a text file of words, or random-20000")
        # A word that stands twice could be learned from and tested on: each pair of word and answer is taken once.
        lines = dict.fromkeys(line for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip())
        pairs = [line.split("\t") if "\t" in line else [line, line[::-1]] for line in lines]
        bad = [k for k, pair in enumerate(pairs) if len(pair) != 2]
        if bad:
            raise DataError(
                f"{len(bad)} lines of {text} have two tabs or more: {rows(bad)}.", expected="WORD<tab>ANSWER"
            )
        return text, np.array([word for word, _ in pairs]), np.array([answer for _, answer in pairs])

    def fit(self, inputs: Any, rows: np.ndarray) -> None:
        self.letters = alphabet(inputs[0][rows])

    def encode(self, inputs: Any) -> tuple[Tensor, ...]:
        words = inputs[0] if isinstance(inputs, tuple) else inputs
        return (padded(tokenize(words, self.letters, "inputs")),)  # (N, S)

    def outputs(self, net: nn.Module, batch: Batch) -> Tensor:
        """Teacher forcing: the net is given the right answer up to each token, and says what comes next: (B, K, T)."""
        return net(batch.inputs[0], batch.truth[:, :-1]).transpose(1, 2)

    @torch.no_grad()
    def answers(
        self, net: nn.Module, examples: Encoded, target: Any, rows: np.ndarray | None = None, **options: Any
    ) -> tuple[Answers, np.ndarray | None]:
        """Nobody gives the net the right answer here: it goes on from its own."""
        batches = self.batches(net, examples, rows, shuffle=False, **{"batch_size": 1000, **options})
        made = [greedy(net, batch.inputs[0], target.longest + 1) for batch in batches.epoch(0)]
        answers = target.decode(torch.cat([tokens for tokens, _ in made]))
        answers.confidence = torch.cat([sure for _, sure in made]).cpu().numpy()
        truth = None if examples.truth is None else examples.truth.numpy()
        return answers, truth if truth is None or rows is None else truth[rows]

    def open_inputs(self, path: str) -> tuple[Any, list[str]]:
        """A file of words to predict on, `-` for standard input: the words are their own names."""
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        words = text.split()
        return (np.array(words),), words

    @classmethod
    def tiny(cls) -> str:
        return "random-500"


def random_words(count: int, longest: int = 12, seed: int = 0) -> np.ndarray:
    """`count` different words over a-z; each length is drawn equally often, as far as there are so many short ones."""
    draw = np.random.default_rng(number(seed, "words"))
    words: dict[str, None] = {}
    while len(words) < count:
        size = draw.integers(1, longest + 1)
        words["".join(map(chr, draw.integers(ord("a"), ord("z") + 1, size)))] = None
    return np.array(list(words))


# --- The kind of answer -----------------------------------------------------------------------------------------------


@dataclass
class Tokens(Target):
    """Words, written token by token. Inside, an answer is BEGIN, its letters, END, and PAD up to the longest."""

    name: ClassVar[str] = "tokens"
    quick: ClassVar[str] = "token_accuracy"  # each token for itself, under teacher forcing: cheap, not the headline

    letters: str = ""  # of the training answers
    longest: int = 0  # letters of the longest training answer: the net writes no longer ones

    def fit(self, truth: Any, *, own_net: bool = False) -> None:
        self.letters, self.longest = alphabet(truth), max(map(len, truth))

    def encode(self, truth: Any) -> Tensor:
        return padded([[BEGIN, *numbers, END] for numbers in tokenize(truth, self.letters, "answers")])

    @property
    def width(self) -> int:
        return FIRST + len(self.letters)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss(ignore_index=PAD)  # a mean over the tokens that are no padding

    def shape_truth(self, truth: Tensor, output: Tensor) -> Tensor:
        """What the net should say at each place: the answer without BEGIN, (B, T)."""
        return truth[:, 1:]

    def check(self, output: Tensor, truth: Tensor, loss: Any) -> None:
        if output.shape[1] < self.width:
            raise UsageError(
                f"Your net tells {output.shape[1]} tokens apart, and the answers have {self.width}: {FIRST} and the "
                f"letters {self.letters}.",
                fix=f"--net-arg letters={len(self.letters)}",
            )

    def tally(self, output: Tensor, truth: Tensor) -> dict[str, Tensor]:
        counted = truth != PAD
        return {"right": ((output.argmax(1) == truth) & counted).sum(), "tokens": counted.sum()}

    def summary(self, sums: dict[str, float], count: int) -> dict[str, float]:
        return {"token_accuracy": sums["right"] / sums["tokens"]}

    def decode(self, output: Tensor) -> Answers:
        """Tokens that were chosen (N, T) -> words."""
        return Answers(self.people(output.cpu().numpy()))

    def people(self, truth: Any) -> np.ndarray:
        return np.array([self._word(numbers) for numbers in np.asarray(truth).tolist()], dtype=str)

    def _word(self, numbers: list[int]) -> str:
        numbers = numbers[: numbers.index(END)] if END in numbers else numbers
        return "".join(self.letters[k - FIRST] for k in numbers if FIRST <= k < self.width)

    def measures(self) -> list[Measure]:
        def right(truth: np.ndarray, answers: Answers) -> np.ndarray:
            return (truth == answers.prediction).astype(float)

        def edits(truth: np.ndarray, answers: Answers) -> np.ndarray:  # (N, 2): letters to change, letters there are
            pairs = zip(truth.tolist(), answers.prediction.tolist(), strict=True)
            return np.array([[distance(word, other), len(word)] for word, other in pairs], float)

        def rate(means: np.ndarray) -> np.ndarray:  # (R, 2) -> (R,)
            return means[..., 0] / means[..., 1]

        return [
            Measure("exact", lambda t, a: float(right(t, a).mean()), each=right, exact=True),
            Measure("character_error_rate", lambda t, a: float(rate(edits(t, a).mean(0))), better="lower",
                    each=edits, finish=rate),
        ]  # fmt: skip


def distance(one: str, other: str) -> int:
    """Letters to insert, delete or replace to get from one word to the other (Levenshtein, 1966)."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        corner, row[0] = row[0], i
        for j, facing in enumerate(other, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (letter != facing))
    return row[-1]


# --- The whole story --------------------------------------------------------------------------------------------------

# A net of your own gets just what you ask for, so the settings that make it good are asked for here.
SETTINGS: dict[str, Any] = {
    "test": 0.1,  # share of the words
    "batch_size": 128,
    "epochs": 8,
    "learning_rate": 4e-3,
    "schedule": "one_cycle",
    "clip_norm": 1.0,
}


def main() -> None:
    import lamina

    run = lamina.train("random-20000", domain=Reverse, task=Tokens, net=Seq2Seq, **SETTINGS)
    print(run.headline)
    print(run.predict(["hello", "lamina"]).prediction)


if __name__ == "__main__":
    main()
