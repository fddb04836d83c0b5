"""Balancing a pole: a net that learns by acting, with `lamina.train`.

    python examples/cartpole.py

    F=examples/cartpole.py
    lamina train CartPole-v1 --domain $F:CartPole --task $F:Return --net $F:Policy --epochs 100 --name pole
    lamina evaluate runs/pole --domain $F:CartPole --task $F:Return --net $F:Policy

There are no examples to learn from but what the net itself meets when it plays, and there is no right answer, only a
return. So an example is the seed of an episode; some seeds are played in training, 100 others are held out for the test.
The engine knows nothing of games. It is told three things, and this file is all of them:

    CartPole    a kind of input: seeds; batches are made by acting with the net as it is now
    Return      a kind of answer: no truth to compare with; what is minimised, and the score
    Policy      the net, plain PyTorch

The method is PPO, proximal policy optimisation (Schulman et al., 2017), with generalised advantages (2016).
Letters of the shapes: N poles that are played side by side, T moves of a rollout, B batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from lamina.batches import Batch
from lamina.domains.base import Domain, Encoded
from lamina.errors import UsageError, near
from lamina.keyed import Key, number, permutation
from lamina.sources import Examples, Source
from lamina.targets.base import Answers, Measure, Target

GAME = "CartPole-v1"
MOST = gymnasium.spec(GAME).max_episode_steps or 500  # moves; who gets so far has won
TRAIN, TEST = range(0, 10_000), range(10_000, 10_100)  # seeds of the episodes


# --- The net ----------------------------------------------------------------------------------------------------------


class Policy(nn.Module):
    """What to do, and how good things look: place, speed, angle and turning speed (B, 4) -> logits of a push to the
    left and to the right (B, 2), value (B,)."""

    def __init__(self, width: int = 64):
        super().__init__()
        push, worth = nn.Linear(width, 2), nn.Linear(width, 1)
        nn.init.orthogonal_(push.weight, gain=0.01)  # so that it begins by trying both pushes
        self.actor = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), push)
        self.critic = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), worth)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(seen), self.critic(seen)[:, 0]


# --- The game ---------------------------------------------------------------------------------------------------------


class Pole:
    """Gymnasium's environment in an episode: it can be put away in the middle and taken up again."""

    def __init__(self) -> None:
        self.env: Any = gymnasium.make(GAME).unwrapped  # its wrapper hides how many moves were made: counted here
        self.seed, self.moves = 0, 0
        self.seen = np.zeros(4, np.float32)

    def begin(self, seed: int) -> None:
        self.seen, _ = self.env.reset(seed=seed)
        self.seed, self.moves = seed, 0

    def push(self, action: int) -> tuple[float, bool, bool]:
        """0 left, 1 right -> the reward; whether the pole fell; whether the time was up."""
        self.seen, reward, fell, _, _ = self.env.step(action)
        self.moves += 1
        return float(reward), fell, self.moves >= MOST and not fell

    def state_dict(self) -> dict[str, Any]:
        return {
            "state": np.array(self.env.state),  # (4,) float64: what is seen is rounded
            "generator": self.env.np_random.bit_generator.state,
            "seed": self.seed,
            "moves": self.moves,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin(state["seed"])
        self.env.state = state["state"].copy()
        self.env.np_random.bit_generator.state = state["generator"]
        self.moves = state["moves"]
        self.seen = self.env.state.astype(np.float32)


@torch.no_grad()
def play(net: nn.Module, seeds: list[int], device: Any = "cpu") -> np.ndarray:
    """Episodes side by side, always with the likelier move -> the return of each (len(seeds),)."""
    poles = [Pole() for _ in seeds]
    for pole, seed in zip(poles, seeds, strict=True):
        pole.begin(seed)
    returns = np.zeros(len(poles))
    going = list(range(len(poles)))
    while going:
        seen = np.stack([poles[k].seen for k in going])  # (still going, 4)
        actions = net(torch.from_numpy(seen).to(device))[0].argmax(1).tolist()
        left = []
        for k, action in zip(going, actions, strict=True):
            reward, fell, over = poles[k].push(action)
            returns[k] += reward
            if not fell and not over:
                left.append(k)
        going = left
    return returns


# --- Batches made by acting -------------------------------------------------------------------------------------------


class Rollouts:
    """An epoch: N poles are played for T moves with the net as it is now, then what was seen is learned from in some
    passes. What a resumed run needs is in `state_dict`: the poles, which episode is next, the memory of the rollout.

    Moves are drawn by keyed random numbers, a function of (seed, epoch, pole, move), so no generator needs be kept.
    """

    def __init__(self, net: nn.Module, seeds: Tensor, game: CartPole, *, batch_size: int, device: Any, seed: int):
        self.net, self.seeds, self.game = net, seeds.tolist(), game
        self.batch_size, self.device, self.seed = batch_size, device, seed
        self.memory: dict[str, Tensor] = {}  # of the rollout that is learned from, a row a move
        self.ended: list[float] = []  # returns of the episodes that ended in it
        self.begun = 0  # episodes
        self.poles = [Pole() for _ in range(game.poles)]
        for pole in self.poles:
            self._begin(pole)

    def _begin(self, pole: Pole) -> None:
        pole.begin(self.seeds[self.begun % len(self.seeds)])
        self.begun += 1

    @property
    def a_pass(self) -> int:
        """Batches a pass."""
        return -(-self.game.poles * self.game.moves // self.batch_size)

    def __len__(self) -> int:
        return self.game.passes * self.a_pass

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        if start == 0:
            self._act(epoch)
        for k in range(start, len(self)):
            which, place = divmod(k, self.a_pass)
            order = permutation(number(self.seed, "pass", which), epoch, len(self.memory["seen"]))
            chosen = order[place * self.batch_size : (place + 1) * self.batch_size]  # (B,)
            rows = {name: column[chosen].to(self.device) for name, column in self.memory.items()}
            truth = (rows["action"], rows["log_p"], rows["advantage"], rows["gain"])
            yield Batch((rows["seen"],), truth, rows["seed"], len(chosen), epoch, self.seed)

    @torch.no_grad()
    def _act(self, epoch: int) -> None:
        """Play, and put what was met into the memory: T x N moves as rows."""
        game, shape = self.game, (self.game.moves, self.game.poles)
        seen, after = np.zeros((*shape, 4), np.float32), np.zeros((*shape, 4), np.float32)
        action, seed = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        reward, fell, over = (np.zeros(shape, np.float32) for _ in range(3))
        self.ended = []
        draws = Key(self.seed, epoch, torch.arange(game.poles)).uniform("move", game.moves)  # (N, T)
        for t in range(game.moves):
            seen[t] = np.stack([pole.seen for pole in self.poles])
            right = self._net(seen[t])[0].softmax(1)[:, 1]  # (N,) how likely a push to the right is
            action[t] = draws[:, t] < right
            for n, pole in enumerate(self.poles):
                seed[t, n] = pole.seed
                reward[t, n], fell[t, n], over[t, n] = pole.push(int(action[t, n]))
                after[t, n] = pole.seen
                if fell[t, n] or over[t, n]:
                    self.ended.append(float(pole.moves))  # each move is worth 1
                    self._begin(pole)

        # How much better than expected things went: each surprise counts for the moves before it, fading on its way.
        logits, values = self._net(seen.reshape(-1, 4))
        value, next_value = values.numpy().reshape(shape), self._net(after.reshape(-1, 4))[1].numpy().reshape(shape)
        # A fall ends it all, so nothing is expected after it; when the time is up the game could have gone on.
        surprise = reward + game.discount * next_value * (1 - fell) - value
        advantage, running = np.zeros(shape, np.float32), np.zeros(game.poles, np.float32)
        for t in reversed(range(game.moves)):
            running = surprise[t] + game.discount * game.trace * running * (1 - fell[t]) * (1 - over[t])
            advantage[t] = running
        columns = {"seen": seen, "action": action, "gain": advantage + value, "seed": seed}
        columns["advantage"] = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        self.memory = {name: torch.from_numpy(column).flatten(0, 1) for name, column in columns.items()}
        self.memory["log_p"] = logits.log_softmax(1).gather(1, self.memory["action"][:, None])[:, 0]

    def _net(self, seen: np.ndarray) -> tuple[Tensor, Tensor]:
        """(B, 4) -> logits (B, 2), value (B,), on the CPU."""
        logits, value = self.net(torch.from_numpy(seen).to(self.device))
        return logits.float().cpu(), value.float().cpu()

    def scores(self) -> dict[str, float]:
        """How the epoch's episodes went, moves being drawn; nothing where none ended."""
        return {"return": float(np.mean(self.ended))} if self.ended else {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "poles": [pole.state_dict() for pole in self.poles],
            "begun": self.begun,
            "ended": self.ended,
            "memory": self.memory,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for pole, kept in zip(self.poles, state["poles"], strict=True):
            pole.load_state_dict(kept)
        self.begun, self.ended, self.memory = state["begun"], list(state["ended"]), dict(state["memory"])


# --- The kind of input ------------------------------------------------------------------------------------------------


@dataclass
class CartPole(Domain):
    """Seeds of episodes. The fields are its options; they are kept with the run."""

    name: ClassVar[str] = "cartpole"

    poles: int = 16  # played side by side
    moves: int = 64  # of each pole in a rollout
    passes: int = 8  # over a rollout
    discount: float = 0.98  # gamma: what a reward is worth one move later
    trace: float = 0.9  # lambda: how far a surprise reaches back
    value_weight: float = 0.5  # of the value's squared error in the loss
    entropy_weight: float = 0.0  # of the reward for undecidedness in the loss

    def read(self, source: Any, **options: Any) -> Source:
        """`CartPole-v1`: seeds to learn on, and 100 held out. Or a list of seeds."""
        if options:
            raise UsageError(f"{GAME} takes no {' and no '.join(options)}.", fix="a share of the seeds: --valid 0.01")
        if not isinstance(source, str):
            return Source("seeds in memory", Examples((np.asarray(source, dtype=np.int64),)))
        if source != GAME:
            raise UsageError(f"There is no game {source!r} here: {near(source, [GAME])}")
        train, test = (Examples((np.array(seeds),)) for seeds in (TRAIN, TEST))
        about = f"gymnasium {gymnasium.__version__}, episodes by seed"
        return Source(GAME, train, test=test, reopen=GAME, about=about)

    def encode(self, inputs: Any) -> tuple[Tensor, ...]:
        seeds = inputs[0] if isinstance(inputs, tuple) else inputs
        return (torch.as_tensor(np.asarray(seeds, dtype=np.int64)),)  # (N,)

    def batches(self, net: nn.Module, examples: Encoded, rows: np.ndarray | None, **options: Any) -> Any:
        """To learn from: rollouts. Unshuffled, to measure with: the seeds themselves."""
        if not options.pop("shuffle", True):
            return super().batches(net, examples, rows, shuffle=False, **options)
        if strange := options.keys() - {"batch_size", "device", "seed"}:
            raise UsageError(f"{GAME} is played without {' and '.join(sorted(strange))}.")
        seeds = examples.inputs[0]
        return Rollouts(net, seeds if rows is None else seeds[rows], self, **options)

    def loss(self, net: nn.Module, batch: Batch, target: Target, loss: Any) -> tuple[Tensor, int]:
        """The policy's loss, the value's, and less for a policy that is undecided."""
        action, log_p_then, advantage, gain = batch.truth  # (B,) each
        logits, value = net(*batch.inputs)
        log_p = logits.log_softmax(1)  # (B, 2)
        ratio = (log_p.gather(1, action[:, None])[:, 0] - log_p_then).exp()  # 1 where the net still thinks as it did
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        error = (value - gain).square().mean()
        return loss(ratio, advantage) + self.value_weight * error - self.entropy_weight * entropy, batch.count

    def validate(self, net: nn.Module, batches: Any, target: Target, loss: Any) -> dict[str, float]:
        seeds = [seed for batch in batches.epoch(0) for seed in batch.inputs[0].tolist()]
        return {"return": float(play(net, seeds, batches.device).mean())}

    def answers(
        self, net: nn.Module, examples: Encoded, target: Target, rows: np.ndarray | None = None, **options: Any
    ) -> tuple[Answers, None]:
        """The return of each episode."""
        seeds = examples.inputs[0] if rows is None else examples.inputs[0][rows]
        return Answers(play(net, seeds.tolist(), options.get("device", "cpu"))), None

    def open_inputs(self, path: str) -> tuple[Any, list[str]]:
        """A file of seeds."""
        with open(path, encoding="utf-8") as file:
            seeds = file.read().split()
        return (np.array(seeds, dtype=np.int64),), seeds

    @classmethod
    def tiny(cls) -> str:
        return GAME


# --- The kind of answer -----------------------------------------------------------------------------------------------


def clipped(ratio: Tensor, advantage: Tensor, reach: float = 0.2) -> Tensor:
    """PPO's loss: make good moves likelier, bad ones less likely, but no further than `reach` in one rollout.

    ratio (B,): the move's probability now over that when it was made. advantage (B,). The paper's L^CLIP, negated.
    """
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - reach, 1 + reach) * advantage).mean()


@dataclass
class Return(Target):
    """The sum of an episode's rewards: nobody knows the right one, the more the better."""

    name: ClassVar[str] = "return"
    quick: ClassVar[str] = "return"
    needs_truth: ClassVar[bool] = False

    def loss(self) -> Any:
        return clipped

    def measures(self) -> list[Measure]:
        return [Measure("return", lambda _, a: float(a.prediction.mean()), each=lambda _, a: a.prediction)]


# --- The whole story --------------------------------------------------------------------------------------------------

# A net of your own gets just what you ask for, so the settings that make it good are asked for here.
SETTINGS: dict[str, Any] = {
    "batch_size": 256,
    "epochs": 80,  # rollouts of 16 x 64 moves
    "learning_rate": 2e-3,
    "schedule": "linear",  # down to 0
    "clip_norm": 0.5,
}


def main() -> None:
    import lamina

    run = lamina.train(GAME, domain=CartPole, task=Return, net=Policy, **SETTINGS)
    print(run.headline)
    print(run.predict([1_000_000, 1_000_001]).prediction)


if __name__ == "__main__":
    main()
