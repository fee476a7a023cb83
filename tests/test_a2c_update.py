"""What a2c_lstm_atari.py carries, cuts and resets, and its loss against the formulas."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_args
from torch import Tensor

import a2c_lstm_atari as a2c


def make_agent(**changes: Any) -> a2c.Agent:
    return a2c.Agent(6, make_args(a2c, **changes))


def screens(steps: int, games: int) -> Tensor:
    return torch.randint(0, 256, (steps, games, 84, 84, 4), dtype=torch.uint8)


def run_net(
    net: a2c.ActorCritic, obs: Tensor, begins: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [T, N, A], values [T, N] and the state after obs [T, N, ...]."""
    logits, value, state = net(net.features(obs.flatten(0, 1)), begins, state)
    return logits.unflatten(0, begins.shape), value.unflatten(0, begins.shape), state


def zeros(games: int) -> Tensor:
    return torch.zeros(2, 1, games, 256)


def chunks(agent: a2c.Agent, games: a2c.AtariGames, args: a2c.Args) -> Iterator[Any]:
    """Rollouts in turn, each with its batch, played as train does."""
    rollout = a2c.Rollout(games.num_envs, args)

    def act(obs: Tensor, begins: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        return agent.act(agent.net.features(obs), begins, state)

    while True:
        agent.eval()
        rollout.collect(games, act, args)
        yield rollout, rollout.batch(args)


def learn(agent: a2c.Agent, batch: a2c.Batch) -> Tensor:
    """One update, as in train; returns the norm of the gradient."""
    agent.train()
    norm = agent.step(agent.gradients(agent.net.features(batch.obs), batch)[0])
    agent.net.features.standardise.update(batch.obs[..., -1])
    return norm


def test_layers_have_the_shapes_of_the_study() -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {
        "linear": [(256,)],
        "cnn": [(16, 21, 21), (32, 10, 10)],
        "cnn-lstm": [(16, 21, 21), (32, 10, 10), (32, 4, 4)],
    }
    sizes = {"linear": 256, "cnn": 3200, "cnn-lstm": 512}
    for model, shape in shapes.items():
        net = make_agent(model=model).net
        seen: list[tuple[int, ...]] = []
        for module in net.features.modules():
            if isinstance(module, torch.nn.ReLU):
                module.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out[0].shape))
        begins = torch.zeros(3, 2, dtype=torch.bool)
        logits, value, state = run_net(net, screens(3, 2), begins, zeros(2))
        assert seen == shape and net.features(screens(3, 2)[0]).shape == (2, sizes[model])
        assert (logits.shape, value.shape, state.shape) == ((3, 2, 6), (3, 2), (2, 1, 2, 256))
    assert isinstance(net.lstm, torch.nn.LSTM) and net.lstm.input_size == 512


def test_the_linear_model_sees_the_difference_of_two_frames() -> None:
    features = make_agent(model="linear").net.features
    seen: list[Tensor] = []
    features.layers[0].register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
    obs = screens(1, 2)
    features.standardise.update(obs[0, ..., -1])
    features(obs[0])
    frames = obs[0].double()
    expected = (frames[..., 3] - frames[..., 2]) / features.standardise.std
    torch.testing.assert_close(seen[0], expected.float(), rtol=1e-4, atol=1e-5)


def test_pixels_are_centred_and_scaled_by_all_that_was_learnt_from() -> None:
    features, parts = make_agent().net.features, [screens(3, 2) // 2, screens(3, 2) // 4]
    for part in parts:
        features.standardise.update(part[..., -1].flatten(0, 1))
    played = np.stack(parts)[..., -1].astype(float)  # the newest of each four frames
    mean = played.mean((0, 1, 2))
    obs = screens(1, 2)[0].movedim(-1, 1)
    expected = (obs.numpy() - mean) / (played - mean).std()
    np.testing.assert_allclose(features.standardise(obs), expected, rtol=1e-3, atol=1e-4)


def test_a_still_background_does_not_matter_unless_asked_for() -> None:
    obs = screens(20, 2) // 3
    background = torch.randint(0, 120, (84, 84, 1), dtype=torch.uint8)
    for norm_obs in True, False:
        net = make_agent(norm_obs=norm_obs).net.features
        dark, bright = copy.deepcopy(net), copy.deepcopy(net)
        dark.standardise.update(obs[..., -1].flatten(0, 1))
        bright.standardise.update((obs + background)[..., -1].flatten(0, 1))
        change = (dark(obs[0]) - bright(obs[0] + background)).abs().max()
        assert change < 1e-3 if norm_obs else change > 0.1
        dark.standardise.update(torch.full((9, 84, 84), 7))
        assert dark(obs[0]).isfinite().all()


def test_the_memory_s_output_changes_with_the_game_before_anything_is_learnt() -> None:
    args = make_args(a2c, num_envs=8, chunk_size=100, max_episode_frames=100_000)
    games = a2c.AtariGames(args, 8)
    games.begin(1)
    agent = a2c.Agent(games.num_actions, args)
    _, batch = next(chunks(agent, games, args))
    agent.net.features.standardise.update(batch.obs[..., -1])
    with torch.no_grad():
        features = agent.net.features(batch.obs).unflatten(0, (100, 8))
        output = agent.net.remember(features, batch.begins, batch.state)[0].unflatten(0, (100, 8))
    # With pixels / 255 it is 0.003, and Pong is not learnt in 700,000 steps.
    assert output[20:].flatten(0, 1).std(0).mean() > 0.05


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_batch_norm_and_activation_stand_behind_every_convolution(activation: str) -> None:
    features = make_agent(batch_norm=True, activation=activation).net.features
    kinds = [type(module).__name__ for module in list(features.layers)[:9]]
    act = {"relu": "ReLU", "silu": "SiLU"}[activation]
    assert kinds == ["Conv2d", "BatchNorm2d", act] * 3


# Memory


def per_step(net: a2c.ActorCritic, obs: Tensor, begins: Tensor) -> Tensor:
    """Logits by one call per step, with the state set to zero by hand where a game begins."""
    h, c = zeros(obs.shape[1])
    logits = []
    for t in range(len(obs)):
        h[:, begins[t]] = 0.0
        c[:, begins[t]] = 0.0
        assert net.lstm
        out, (h, c) = net.lstm(net.features(obs[t])[None], (h, c))
        h, c = h.clone(), c.clone()
        logits.append(net.policy(out[0]))
    return torch.stack(logits)


@torch.no_grad()
def test_one_call_per_stretch_equals_one_per_step_with_resets_in_every_position() -> None:
    net, obs = make_agent().net, screens(4, 2)
    for pattern in itertools.product([False, True], repeat=8):
        begins = torch.tensor(pattern).reshape(4, 2)
        logits, _, _ = run_net(net, obs, begins, zeros(2))
        torch.testing.assert_close(logits, per_step(net, obs, begins), rtol=0, atol=1e-6)


@torch.no_grad()
def test_chunks_in_turn_equal_the_whole_sequence_with_resets_in_every_position() -> None:
    net, obs = make_agent().net, screens(6, 2)
    for reset in range(6):
        begins = torch.zeros(6, 2, dtype=torch.bool)
        begins[reset, 1] = True
        whole, _, last = run_net(net, obs, begins, zeros(2))
        state, parts = zeros(2), []
        for t in 0, 2, 4:
            logits, _, state = run_net(net, obs[t : t + 2], begins[t : t + 2], state)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)
        torch.testing.assert_close(state, last, rtol=0, atol=1e-6)


class FakeGames(a2c.AtariGames):
    """Each game lasts `length` steps; the first screen shows a cue, the others nothing.

    The last action is rewarded with 1 if it is the cue, and with -1 if not.
    """

    num_actions, length = 2, 4

    def __init__(self, num_envs: int) -> None:
        # no super().__init__(): there is no game behind
        self.num_envs, self.t = num_envs, np.zeros(num_envs, int)
        self.cue = np.zeros(num_envs, int)
        self.obs = torch.zeros(num_envs, 84, 84, 4, dtype=torch.uint8)
        self.reset(np.ones(num_envs, bool))

    def reset(self, ended: np.ndarray, seeds: np.ndarray | None = None) -> None:
        self.t[ended] = 0
        self.cue[ended] = torch.randint(2, (self.num_envs,)).numpy()[ended]
        self.obs = torch.zeros_like(self.obs)
        self.obs[torch.as_tensor((self.t == 0) & (self.cue == 1)), ..., 3] = 255

    def step(self, action: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        self.t += 1
        over = self.t >= self.length
        reward = np.where(over, np.where(action.numpy() == self.cue, 1.0, -1.0), 0.0)
        self.obs = torch.zeros_like(self.obs)
        no = np.zeros(self.num_envs, bool)
        return reward.astype(np.float32), over, no.copy(), no


def collected(num_envs: int = 2, chunk_size: int = 8, **changes: Any) -> tuple[Any, Any, Any]:
    args = make_args(a2c, num_envs=num_envs, chunk_size=chunk_size, **changes)
    agent, games = a2c.Agent(2, args), FakeGames(num_envs)
    with torch.no_grad():
        agent.net.policy.weight.mul_(100)  # type: ignore[operator]
    return agent, games, args


@pytest.mark.parametrize("model", ["linear", "cnn", "cnn-lstm"])
@torch.no_grad()
def test_learning_sees_the_probabilities_that_acting_saw(model: str) -> None:
    agent, games, args = collected(chunk_size=7, model=model, temperature_init=1.7)
    acted: list[Tensor] = []
    act = agent.act
    agent.act = lambda *seen: acted.append(act(*seen)[0]) or act(*seen)  # type: ignore
    for rollout, batch in itertools.islice(chunks(agent, games, args), 3):
        # Three chunks, of which the last two begin in the middle of a game
        logits, value, _ = agent.net(agent.net.features(batch.obs), batch.begins, batch.state)
        log_probs = (logits / 1.7).log_softmax(1)
        ratio = (log_probs - torch.cat(acted[:7])).exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=2e-6)
        torch.testing.assert_close(value, rollout.value.flatten(), rtol=2e-6, atol=1e-6)
        assert rollout.over.any() and log_probs.std() > 1e-3
        # A game begins right behind the end of the one before.
        assert torch.equal(batch.begins[1:], torch.from_numpy(rollout.over[:-1]))
        acted.clear()


def test_no_gradient_crosses_from_one_chunk_to_the_one_before() -> None:
    agent, games, args = collected(chunk_size=3)
    rollouts = chunks(agent, games, args)
    next(rollouts)
    _, batch = next(rollouts)
    assert not batch.state.requires_grad
    assert batch.state.abs().max() > 0, "and yet the state itself is carried"


def test_a_lost_life_counts_as_termination_and_keeps_the_memory() -> None:
    class Lives(FakeGames):
        length = 100

        def step(self, action: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            reward, over, no, _ = super().step(action)
            return reward + 1, over, no, np.ones(self.num_envs, bool)

    agent, _, args = collected(chunk_size=5)
    rollout, batch = next(chunks(agent, Lives(2), args))
    assert not rollout.over.any()
    assert batch.begins.sum() == 2, "only the very first step begins a game"
    torch.testing.assert_close(batch.returns, torch.ones(10))
    assert not rollout.begins[-1].any() and rollout.next_state.abs().max() > 0


def test_the_checkpoint_holds_the_temperature_and_the_optimizer(tmp_path: Path) -> None:
    args = make_args(a2c, run_dir=tmp_path / "run", temperature_init=2.0)
    checkpoint = a2c.load_checkpoint(a2c.train(args) / "checkpoint.pt")
    assert 1 < checkpoint["agent"]["temperature"] < 2
    state = checkpoint["optimizer"]["state"]
    assert len(state) == len(list(make_agent().parameters()))
    assert all(entry["square_avg"].abs().sum() > 0 for entry in state.values())


def test_a_game_that_is_cut_off_keeps_the_value_of_its_last_screen() -> None:
    class Cut(FakeGames):
        last: list[Tensor] = []

        def step(self, action: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            reward, over, no, _ = super().step(action)
            self.last.append(self.obs)
            return reward, no, over, no.copy()

    agent, _, args = collected(chunk_size=4, gae_lambda=0.0, gamma=0.9)
    with torch.no_grad():
        agent.net.value.weight.mul_(10)
    games = Cut(2)
    rollout, batch = next(chunks(agent, games, args))
    assert rollout.over[3].all() and not rollout.over[:3].any()
    whole = torch.cat([batch.obs.unflatten(0, (4, 2)), games.last[3][None]])
    begins = torch.zeros(5, 2, dtype=torch.bool)
    _, value, _ = run_net(agent.net, whole, begins, zeros(2))
    expected = torch.from_numpy(rollout.reward[3]) + 0.9 * value[4] - value[3]
    advantage = batch.advantage.unflatten(0, (4, 2))[3]
    torch.testing.assert_close(advantage, expected.detach(), rtol=0, atol=1e-5)


def test_a_game_that_is_played_is_played_as_in_training() -> None:
    agent, _, _ = collected(temperature_init=1.7)
    player, state, none = agent.player(2), zeros(2), torch.zeros(2, dtype=torch.bool)
    for obs in screens(3, 2):
        log_probs, _, state = agent.act(agent.net.features(obs), none, state)
        torch.testing.assert_close(player(obs), log_probs)


@pytest.mark.parametrize(("model", "solved"), [("cnn-lstm", True), ("cnn", False)])
def test_what_was_seen_three_steps_ago_is_used_with_a_memory_and_not_without(
    model: str, solved: bool
) -> None:
    agent, games, args = collected(32, 8, model=model, learning_rate=3e-3, gamma=0.9)
    with torch.no_grad():
        agent.net.policy.weight.div_(100)
    returns = []
    for rollout, batch in itertools.islice(chunks(agent, games, args), 120 if solved else 80):
        learn(agent, batch)
        returns.append(rollout.reward.sum() / rollout.over.sum())
        if np.mean(returns[-10:]) > 0.9 and len(returns) >= 10:
            break
    last = np.mean(returns[-10:])
    assert last > 0.9 if solved else abs(last) < 0.3


# Temperature and loss


def test_the_temperature_follows_its_formula() -> None:
    settings = {"temperature_init": 3.0, "temperature_min": 1.0, "temperature_decay_episodes": 100}
    agent = make_agent(**settings)
    values = []
    for episodes in 0, 25, 50, 100, 1000:
        agent.anneal_temperature(episodes)
        values.append(float(agent.temperature))
    assert values == pytest.approx([3.0, 2.5, 2.0, 1.0, 1.0])


def test_the_loss_equals_its_formula() -> None:
    agent, games, args = collected(temperature_init=1.5)
    rollout, batch = next(chunks(agent, games, args))
    loss, log = agent.loss(agent.net.features(batch.obs), batch)
    logits, value, _ = agent.net(agent.net.features(batch.obs), batch.begins, batch.state)
    policy = torch.distributions.Categorical(logits=logits / 1.5)
    gain = (policy.log_prob(batch.action) * batch.advantage).mean()
    error = 0.5 * (value - rollout.value.flatten() - batch.advantage).square().mean()
    torch.testing.assert_close(loss, -gain - 0.01 * policy.entropy().mean() + 0.5 * error)
    assert log["entropy"] > 0


def test_first_updates_do_not_saturate_the_lstm() -> None:
    args = make_args(a2c, num_envs=2, chunk_size=10, sticky_actions=0.0, max_episode_frames=100_000)
    games = a2c.AtariGames(args, 2)
    games.begin(1)
    agent = a2c.Agent(games.num_actions, args)
    for rollout, batch in itertools.islice(chunks(agent, games, args), 12):  # noqa: B007
        learn(agent, batch)
    # With PyTorch's eps where the paper's ε stands, features grow from 20 to above 300, and c to 6.
    assert agent.net.features(batch.obs).norm(dim=1).mean() < 40
    assert rollout.next_state[1].abs().mean() < 2


def test_an_update_is_one_step_of_rmsprop_on_the_clipped_gradient() -> None:
    agent, games, args = collected(max_grad_norm=0.01, weight_decay=0.1, learning_rate=1e-3)
    _, batch = next(chunks(agent, games, args))
    before = copy.deepcopy(agent.net)
    parameters = list(agent.net.parameters())
    loss, _ = agent.loss(agent.net.features(batch.obs), batch)
    grads = torch.autograd.grad(loss, parameters)
    norm = torch.cat([grad.flatten() for grad in grads]).norm()
    assert norm > 0.01
    torch.testing.assert_close(learn(agent, batch), norm)  # before clipping
    for old, new, grad in zip(before.parameters(), parameters, grads):
        g = grad * 0.01 / norm + 0.1 * old
        expected = old - 1e-3 * g / ((0.01 * g * g).sqrt() + 3e-3)
        torch.testing.assert_close(new, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_compiled_features_equal_the_plain_ones_in_acting_and_in_learning(batch_norm: bool) -> None:
    """With batch norm these differ, and the compiled function must not mix them up."""
    agents = [make_agent(batch_norm=batch_norm) for _ in range(2)]
    agents[1].load_state_dict(agents[0].state_dict())
    compiled = a2c.compiled(agents[1].net.features.forward, make_args(a2c, compile=True))
    functions: tuple[Any, ...] = agents[0].net.features, compiled
    for obs in screens(3, 8):  # acting and learning in turn, as in train
        for learning in False, True:
            outputs = []
            for agent, features in zip(agents, functions):
                agent.train(learning)
                with torch.set_grad_enabled(learning):
                    outputs.append(features(obs // 2))
            torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
            assert outputs[1].requires_grad == learning
            if learning:
                grads = [
                    torch.autograd.grad(out.square().mean(), list(agent.net.features.parameters()))
                    for agent, out in zip(agents, outputs)
                ]
                torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
    state, other = (agent.state_dict() for agent in agents)
    torch.testing.assert_close(state, other, rtol=1e-4, atol=1e-4)
    if batch_norm:
        norm = agents[1].net.features.layers[1]
        assert norm.num_batches_tracked == 3, "only learning counts"


# The training loop


def test_the_loop_anneals_resets_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight chunks of 32 steps in two games that end after 100 steps."""
    collect, gradients, rmsprop = a2c.Rollout.collect, a2c.Agent.gradients, torch.optim.RMSprop.step
    rates, norms, temperatures, modes, rollouts = [], [], [], [], []
    acted: list[tuple[Tensor, ...]] = []

    def note_play(rollout: a2c.Rollout, games: Any, act: Any, args: Any) -> None:
        def note(*seen: Tensor) -> tuple[Tensor, ...]:
            acted.append(act(*seen))
            return acted[-1]

        acted.clear()
        collect(rollout, games, note, args)
        rollouts.append(rollout)

    def note_learning(agent: a2c.Agent, features: Tensor, batch: a2c.Batch) -> Any:
        modes.append(agent.training)
        temperatures.append(float(agent.temperature))
        # The policy that learns is the one that played, also behind the resets.
        logits = agent.net(features, batch.begins, batch.state)[0]
        log_probs = (logits / agent.temperature).log_softmax(1).unflatten(0, (32, 2))
        played = iter(acted)
        for t in range(32):
            then, _, after = next(p for p in played if torch.equal(p[1], rollouts[-1].value[t]))
            ratio = (log_probs[t] - then).exp()
            torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=2e-6)
        assert torch.equal(batch.state, states[-1]), "the state is carried to the next chunk"
        states.append(after)
        begins.append(batch.begins.clone())
        overs.append(torch.from_numpy(rollouts[-1].over.copy()))
        return gradients(agent, features, batch)

    states: list[Tensor] = [zeros(2)]
    begins: list[Tensor] = []
    overs: list[Tensor] = []

    def note_step(optimizer: torch.optim.RMSprop) -> None:
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        norms.append(torch.cat([p.grad.flatten() for p in group["params"]]).norm())
        rmsprop(optimizer)

    monkeypatch.setattr(a2c.Rollout, "collect", note_play)
    monkeypatch.setattr(a2c.Agent, "gradients", note_learning)
    monkeypatch.setattr(torch.optim.RMSprop, "step", note_step)
    settings = {"temperature_init": 3.0, "temperature_decay_episodes": 4, "max_grad_norm": 1e-3}
    run_dir = a2c.train(make_args(a2c, run_dir=tmp_path / "run", sticky_actions=0.0, **settings))

    run = a2c.load_checkpoint(run_dir / "checkpoint.pt")["run"]
    assert run["env_step"] == 512 and run["updates"] == 8 and run["episodes"] == [2, 2]
    assert rates == pytest.approx([6e-3 * (1 - i / 8) for i in range(8)])
    assert all(norm <= 1.001e-3 for norm in norms)
    # Two games end in the fourth chunk, two in the seventh.
    assert temperatures == pytest.approx([3, 3, 3, 3, 2, 2, 2, 1])
    assert all(modes)
    first, over = torch.cat(begins), torch.cat(overs)
    assert first[0].all() and torch.equal(first[1:], over[:-1]) and first.sum() == 6


def test_the_loop_tells_batch_norm_whether_it_acts_or_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, modes = a2c.Features.forward, []

    def note(features: a2c.Features, obs: Tensor) -> Tensor:
        modes.append((features.training, torch.is_grad_enabled(), len(obs)))
        return forward(features, obs)

    monkeypatch.setattr(a2c.Features, "forward", note)
    a2c.train(make_args(a2c, run_dir=tmp_path / "run", batch_norm=True))
    assert {(True, True, 64), (False, False, 2)} == set(modes), "evaluation has two games as well"
