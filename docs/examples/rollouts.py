"""RL rollouts with metrics: a policy writes programs, sandboxes run and score them, the counts go to W&B.

Without W&B it runs all the same: the metrics are simply not logged. Pass `--wandb` to log to a run of your own (here an
offline one); a session finds the program's active run by itself.
"""

import random
import sys

from cwsandbox import Process, Session

TASK = "print the sum of 1 to 10"
EXPECTED = "55\n"
ACTIONS = ["print(sum(range(10)))", "print(sum(range(1, 11)))", "print(55 / 0)", "while True: pass"]
ROLLOUTS, STEPS = 4, 3


class Policy:
    """Chooses among programs by what they earned so far. A real one is a model that is asked for a program."""

    def __init__(self) -> None:
        self.scores = dict.fromkeys(ACTIONS, 0.0)
        self._random = random.Random(0)

    def sample(self) -> str:
        return max(self.scores, key=lambda action: self.scores[action] + self._random.random())

    def learn(self, action: str, reward: float) -> None:
        self.scores[action] += reward


def reward_of(process: Process) -> float:
    """1 for the right answer, 0 for a wrong one, -1 for none: a crash, or no end within a second."""
    try:
        result = process.result()
    except Exception:  # A time-out, or a sandbox that failed: nothing to learn more from it than that.
        return -1.0
    if result.returncode != 0:
        return -1.0
    return 1.0 if result.stdout == EXPECTED else 0.0


if "--wandb" in sys.argv:
    import wandb

    wandb.init(project="rollouts", mode="offline", settings=wandb.Settings(silent=True))

policy = Policy()
with Session() as session:
    for step in range(STEPS):
        actions = [policy.sample() for _ in range(ROLLOUTS)]
        sandboxes = [session.sandbox() for _ in actions]
        processes = [
            sandbox.exec(["python", "-c", action], timeout_seconds=1)
            for sandbox, action in zip(sandboxes, actions, strict=True)
        ]
        for action, process in zip(actions, processes, strict=True):
            policy.learn(action, reward_of(process))
        for ref in [sandbox.stop() for sandbox in sandboxes]:
            ref.result()
        executions = session.get_metrics()["cwsandbox/executions"]
        logged = session.log_metrics(step=step)  # also resets the counts, if a run took them
        print(f"step {step}: {executions} executions, {'logged' if logged else 'not logged'}")

print("best:", max(policy.scores, key=policy.scores.__getitem__))
