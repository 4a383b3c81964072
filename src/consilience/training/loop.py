"""The only training loop. It knows steps, phases, precision, processes and checkpoints; it knows no method.

Exactness. All randomness is a function of (seed, phase, epoch, batch, sample): the order of the data, the views, the
dropout. A checkpoint is therefore only tensors and a position, and a run that is killed at any instant and resumed
ends in the same bits on a CPU. In several processes every rank holds a contiguous part of each global batch.
"""

from __future__ import annotations

import atexit
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from consilience.data.loader import Loader
from consilience.data.schema import Batch
from consilience.data.table import Table
from consilience.distributed import rank, world_size
from consilience.encoders.norm import synchronise
from consilience.errors import ConsilienceError, InputError
from consilience.methods.base import Beliefs, Method, Phase, Progress
from consilience.training.allocator import keep_freed_memory
from consilience.training.checkpoint import (
    Position,
    load_model,
    load_optimiser,
    load_position,
    newest,
    save_checkpoint,
    save_model,
)
from consilience.training.config import TrainConfig
from consilience.training.passes import TrainingSet, encode_rows
from consilience.training.run import RunFolder
from consilience.training.selection import Selection

Watch = Callable[[Method, str, int], dict[str, float]]
"""Called after every epoch with (method, phase, epoch); what it returns is logged and never fed back."""


class Interrupted(ConsilienceError):
    """The user stopped the run; it can be resumed."""

    exit_code = 130


def join_processes(device: str) -> None:
    """Make the processes that torchrun started one group (a no-op in a single process); needed before the first
    collective. Without a GPU accelerate has to be told so, or the ranks stay strangers."""
    PartialState(cpu=_on_cpu(device))
    if world_size() > 1:
        atexit.unregister(_part)
        atexit.register(_part)


def _on_cpu(device: str) -> bool:
    return device == "cpu" or not torch.cuda.is_available()


def _part() -> None:
    """Leave the group before the interpreter shuts down: gloo's threads abort a process that still is in one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Step(nn.Module):
    """What DDP wraps: the method's step as a forward pass."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        return self.method.step(batch, progress)


class Trainer:
    """One run in progress. Build it with everything resolved, then call :meth:`run`."""

    def __init__(
        self,
        run: RunFolder,
        table: Table,
        method: Method,
        config: TrainConfig,
        selection: Selection,
        watch: Watch | None,
        quiet: bool,
    ) -> None:
        self.run_folder, self.table, self.config = run, table, config
        self.selection, self.rows, self.held_out = selection, selection.rows, selection.held_out
        self.watch, self.quiet = watch, quiet
        # accelerate keeps the first precision for the whole process; a second run here may ask for another one
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=_on_cpu(config.device),
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        if config.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--train.device cuda: torch sees no GPU; use --train.device cpu")
        synchronise(method)
        self.method = method.to(self.accelerator.device)
        self._decoded: Loader | None = None
        self._decoded = self._loader(0, 2 * world_size(), 0)
        self.encode_all = TrainingSet(method, self._decoded, self.accelerator.device, config.seed)
        self.position = Position()
        self.stopping = False
        self.board = _board(run, config) if self.main else None

    @property
    def main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def run(self) -> None:
        """Train from the newest checkpoint (or the start) to the end; writes model.safetensors at last."""
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        checkpoint = newest(self.run_folder.checkpoints)
        if checkpoint is not None:
            self.position = load_position(checkpoint)
            load_model(checkpoint / "model.safetensors", self.method)
        if self.main:
            self.run_folder.rewind_log(self.position.step)
        if checkpoint is None:
            self._save(None)
        phases = self.method.phases()
        last = max((i for i, phase in enumerate(phases) if phase.epochs), default=-1)
        with self._interruptible():
            for number in range(self.position.phase, len(phases)):
                if phases[number].epochs:
                    self._phase(number, phases[number], number == last, checkpoint)
                checkpoint = None
                self.position = Position(number + 1, 0, 0, self.position.step)
                self._save(None)
        if self.main:
            save_model(self.run_folder.model_file, self.method)
        self.accelerator.wait_for_everyone()

    def _loader(self, number: int, batch_size: int, workers: int) -> Loader:
        """Batches of phase ``number``; rows decoded for one phase serve the others."""
        return Loader(
            self.table,
            self.rows,
            self.method.decode,
            batch_size,
            modalities=tuple(self.method.modalities),
            seed=self.config.seed * 1009 + number,
            shuffle=True,
            rank=rank(),
            world=world_size(),
            workers=workers,
            partners=self.selection.partners,
            weights=self.selection.weights,
            sharing=self._decoded,
            targets=self.method.targets,
        )

    def _phase(self, number: int, phase: Phase, last: bool, checkpoint: Path | None) -> None:
        config, method = self.config, self.method
        loader = self._loader(number, phase.batch_size, config.workers)
        progress = Progress(number, phase.name, 0, 0.0, config.seed)
        for parameter in method.parameters():
            parameter.requires_grad_(False)
        frozen = {id(p) for m in method.modules() if getattr(m, "frozen", False) for p in m.parameters()}
        trained = [p for module in method.trained(phase.name) for p in module.parameters() if id(p) not in frozen]
        for parameter in trained:
            parameter.requires_grad_(True)
        optimiser = phase.optimiser.build(trained)
        if checkpoint is not None and (checkpoint / "optimiser.safetensors").exists():
            load_optimiser(checkpoint, optimiser)
        # not through prepare(): it would also wrap the optimiser, whose state the checkpoint holds by position
        step = self.accelerator.prepare_model(_Step(method)) if world_size() > 1 else _Step(method)
        first = self.position.epoch
        with self._bar(phase, loader.steps) as bar:
            for epoch in range(first, phase.epochs):
                if self.position.batch == 0:
                    method.eval()
                    method.prepare(replace(progress, epoch=epoch), self.encode_all)
                self._epoch(step, loader, optimiser, phase, replace(progress, epoch=epoch), bar)
                self._end_of_epoch(phase, epoch, last, optimiser)
        if last and config.select == "best" and self.position.best is not None:
            load_model(self.run_folder.best_file, method)
        method.eval()
        beliefs = method.finish(replace(progress, epoch=phase.epochs), self.encode_all)
        if self.main and beliefs:
            self._write_beliefs(beliefs, phase.name)
        self.accelerator.wait_for_everyone()

    def _epoch(
        self,
        step: nn.Module,
        loader: Loader,
        optimiser: torch.optim.Optimizer,
        phase: Phase,
        progress: Progress,
        bar: tqdm[Any],
    ) -> None:
        config, total = self.config, loader.steps * phase.epochs
        self.method.train()
        optimiser.zero_grad()
        for number, batch in enumerate(loader.epoch(progress.epoch, self.position.batch), self.position.batch):
            done = progress.epoch * loader.steps + number
            now = replace(progress, fraction=done / total)
            torch.manual_seed(hash((config.seed, progress.phase, done, rank())) & 0xFFFFFFFF)
            for group in optimiser.param_groups:
                group["lr"] = phase.optimiser.lr * phase.optimiser.factor(done, total, phase.epochs)
            update = (number + 1) % config.accumulate == 0 or number + 1 == loader.steps
            losses: dict[str, Tensor] = {}
            moved = batch.to(self.accelerator.device)
            for turn in range(phase.turns):
                losses |= self._turn(step, moved, replace(now, turn=turn), optimiser, update, number)
            self.method.after_batch(moved, now)
            loss = torch.stack(list(losses.values())).sum() if losses else torch.zeros(())
            self.position = replace(self.position, epoch=progress.epoch, batch=number + 1, step=self.position.step + 1)
            self._report(phase, progress.epoch, losses, loss, bar)
            if update and self._stop_asked():
                self._save(optimiser)
                raise Interrupted(
                    f"stopped at step {self.position.step}; go on with: "
                    f"consilience train --resume {self.run_folder.path}"
                )
            if update and (number + 1) % config.checkpoint_every < config.accumulate and number + 1 < loader.steps:
                self._save(optimiser)

    def _turn(
        self,
        step: nn.Module,
        batch: Batch,
        progress: Progress,
        optimiser: torch.optim.Optimizer,
        update: bool,
        number: int,
    ) -> dict[str, Tensor]:
        """One forward and backward pass and, at an ``update``, the optimiser's step; the terms."""
        with nullcontext() if update else self.accelerator.no_sync(step):
            with self.accelerator.autocast():
                losses: dict[str, Tensor] = step(batch, progress)
            if not losses:
                return {}
            loss = torch.stack(list(losses.values())).sum()
            if not bool(torch.isfinite(loss)):
                raise ConsilienceError(
                    f"the loss is {loss.item()} in phase {progress.name}, epoch {progress.epoch}, batch {number}; "
                    "lower the learning rate or set --train.clip_norm 1"
                )
            self.accelerator.backward(loss / self.config.accumulate)
        if update:
            if self.config.clip_norm:
                torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.config.clip_norm)
            optimiser.step()
            optimiser.zero_grad()
        return losses

    def _end_of_epoch(self, phase: Phase, epoch: int, last: bool, optimiser: torch.optim.Optimizer) -> None:
        record: dict[str, Any] = {"step": self.position.step, "phase": phase.name, "epoch": epoch}
        best = self.position.best
        if len(self.held_out):
            seen = encode_rows(
                self.method,
                self.table,
                self.held_out,
                self.accelerator.device,
                partners=self.selection.held_out_partners,
                represent=True,
            )
            self.method.eval()
            record["agreement"] = self.method.agreement(seen)
            if math.isnan(record["agreement"]):
                del record["agreement"]
            elif last and (best is None or record["agreement"] > best):
                best = record["agreement"]
                if self.main:
                    save_model(self.run_folder.best_file, self.method)
        if self.watch is not None:
            self.method.eval()
            record |= self.watch(self.method, phase.name, epoch)
        if self.main:
            self.run_folder.log(record)
        self.position = replace(self.position, epoch=epoch + 1, batch=0, best=best)
        self._save(optimiser)

    def _save(self, optimiser: torch.optim.Optimizer | None) -> None:
        if self.main:
            save_checkpoint(self.run_folder.checkpoints, self.method, optimiser, self.position)
        self.accelerator.wait_for_everyone()

    def _write_beliefs(self, beliefs: Beliefs, phase: str) -> None:
        keys = self.table.indices()[self.rows]
        self.table.write_columns(keys, beliefs, {"run": str(self.run_folder.path.resolve()), "phase": phase})

    def _report(self, phase: Phase, epoch: int, losses: dict[str, Tensor], loss: Tensor, bar: tqdm[Any]) -> None:
        if not self.main:
            return
        bar.update(1)
        if self.position.step % self.config.log_every:
            return
        terms = {name: round(float(value.detach()), 6) for name, value in losses.items()}
        shown = {"loss": float(loss.detach()), **terms}
        bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
        record = {
            "step": self.position.step,
            "phase": phase.name,
            "epoch": epoch,
            "loss": float(loss.detach()),
        }
        self.run_folder.log(record | terms)
        if self.board is not None:
            self.board.add_scalar("loss", record["loss"], self.position.step)
            for name, value in terms.items():
                self.board.add_scalar(f"{phase.name}/{name}", value, self.position.step)

    def _stop_asked(self) -> bool:
        if world_size() == 1:
            return self.stopping
        flag = torch.tensor([int(self.stopping)], device=self.accelerator.device)
        return int(self.accelerator.reduce(flag).item()) > 0

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C ends the run at the next step with a checkpoint; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _bar(self, phase: Phase, steps: int) -> Iterator[tqdm[Any]]:
        done = self.position.epoch * steps + self.position.batch
        interactive = sys.stderr.isatty()
        with tqdm(
            total=phase.epochs * steps,
            initial=done,
            desc=phase.name,
            file=sys.stderr,
            disable=self.quiet or not self.main,
            mininterval=0.2 if interactive else 5.0,
            dynamic_ncols=interactive,
        ) as bar:
            yield bar


def _board(run: RunFolder, config: TrainConfig) -> Any:
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--train.tensorboard needs: pip install 'consilience[track]'") from error
    return SummaryWriter(str(run.path / "tensorboard"))
