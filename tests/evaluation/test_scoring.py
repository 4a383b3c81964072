"""Score matrices in blocks, ensembles, unique items, memory, and the two-stage search."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.encoders.build import EncoderConfig
from consilience.errors import InputError
from consilience.evaluation.matching import matching
from consilience.evaluation.reranking import SlotPairs, rerank
from consilience.evaluation.scoring import Represented, ensemble, paired_items, score_matrix
from consilience.heads.matching import Peers, ScorerConfig
from consilience.methods.contrastive import Contrastive, ContrastiveConfig
from consilience.views.geometry import ViewConfig

EMBED, REGIONS, WIDTH, TOKENS = 8, 4, 6, 9
KINDS = {"image": Kind.REGIONS, "text": Kind.TEXT}
SIZES = {"regions": REGIONS, "region_width": WIDTH, "max_tokens": TOKENS, "tokenizer": "bytes"}


def method(scorer: str = "sgr", networks: int = 2, seed: int = 0, **encoders: Any) -> Contrastive:
    torch.manual_seed(seed)
    config = ContrastiveConfig(
        networks=networks,
        scorer=ScorerConfig(name=scorer, width=5, sim=6, steps=2, slots=REGIONS),
        encoders=EncoderConfig(**{**SIZES, "embed": EMBED, "text": "gru", **encoders}),
    )
    return Contrastive(config, KINDS, 10).eval()


def features(i: int) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(i).normal(size=(REGIONS, WIDTH)).astype(np.float32))
    return stream.getvalue()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """12 images with one to three captions each, the third image's first caption being another's too."""
    rows = []
    for i in range(12):
        for j in range(1 + i % 3):
            text = "same" if (i, j) in ((2, 0), (5, 1)) else f"c{i}-{j}" * (1 + j)
            values = {"image": features(i), "text": text.encode()}
            rows.append(Row(f"{i}-{j}", "test", values, dict.fromkeys(values, "made"), scalars={"group": 100 - i}))
    place = tmp_path_factory.mktemp("scoring") / "table"
    return Table.create(place, rows, KINDS, "made", scalars={"group": pa.int64()}, sizes=SIZES)


def test_items_are_unique_and_know_their_image(table: Table) -> None:
    rows = table.select()
    for names in (("image", "text"), ("text", "image")):
        items = paired_items(table, rows, names)
        assert items.names == ("image", "text")
        assert (len(items.first), len(items.second)) == (12, 24)
        ids = table.take(rows, ["id"])["id"].to_pylist()
        assert [ids[i] for i in items.first] == [f"{i}-0" for i in range(12)]
        assert items.own.tolist() == [int(ids[i].split("-")[0]) for i in items.second]
        copies = items.copies.tolist()
        assert len(set(copies)) == 23
        assert copies[ids.index("2-0")] == copies[ids.index("5-1")]


def test_rows_without_groups_are_pairs_of_their_own(tiny_table: Table) -> None:
    items = paired_items(tiny_table, tiny_table.select("split = 'test'"), ("image", "points"))
    assert items.own.tolist() == list(range(12)) == items.first.tolist() == items.second.tolist()


def test_a_group_of_other_bytes_is_not_one_item(tmp_path: Path) -> None:
    """A column called group may mean anything: only rows that hold the same bytes are one item."""
    rows = [
        Row(str(i), "test", {"image": features(i // 2), "text": b"t"}, {}, scalars={"group": "all"}) for i in range(4)
    ]
    table = Table.create(tmp_path / "t", rows, KINDS, "made", scalars={"group": pa.string()}, sizes=SIZES)
    items = paired_items(table, table.select(), ("image", "text"))
    assert (items.names, items.own.tolist()) == (("text", "image"), [0, 0])


@pytest.mark.parametrize("scorer", ["sgr", "sgraf", "cosine"])
def test_blocks_change_nothing(table: Table, scorer: str) -> None:
    model, rows = method(scorer).train(), table.select()[:7]
    lazy = [Represented(model, table, rows, name) for name in KINDS]
    sides = [side[:] for side in lazy]
    assert [len(side) for side in lazy] == [7, 7]
    for side, made in zip(lazy, sides, strict=True):
        torch.testing.assert_close(side[2:5], made[2:5], atol=1e-6, rtol=0)
    model.eval()
    whole = model.score(sides[0], sides[1], ("image", "text"))
    model.train()
    block = 4 * 3 * sides[1][:1].numel() * 4  # three captions at a time
    for found in (
        score_matrix(model, sides[0], sides[1], ("image", "text"), block_bytes=1),
        score_matrix(model, lazy[0], lazy[1], ("image", "text"), block_bytes=block),
        score_matrix(model, sides[1], sides[0], ("text", "image"), block_bytes=block).T,
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, whole, atol=1e-6, rtol=0)
    assert model.training


def test_an_ensemble_is_the_mean_of_the_matrices(table: Table) -> None:
    models, rows = [method(seed=1), method("cosine", seed=2)], table.select()[:8]
    sides = [(Represented(m, table, rows, "image"), Represented(m, table, rows, "text")) for m in models]
    each = [score_matrix(m, *side, ("image", "text")) for m, side in zip(models, sides, strict=True)]
    found = ensemble(models, sides, ("image", "text"), block_bytes=20000)
    torch.testing.assert_close(found, (each[0] + each[1]) / 2)
    with pytest.raises(InputError, match="expected the same rows"):
        ensemble(models, [sides[0], (sides[1][0], Represented(models[1], table, rows[:3], "text"))], ("image", "text"))
    with pytest.raises(InputError, match="expected the same rows"):
        ensemble([], [], ("image", "text"))


class _Counted:
    """Rows [n, r] that count how many are held at a time: what a block gave is gone before the next is asked for."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.largest = values, 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, chosen: slice) -> Tensor:
        part = self.values[chosen].clone()
        self.largest = max(self.largest, part.numel() * part.element_size())
        return part


def test_no_block_is_larger_than_a_quarter_of_the_ceiling() -> None:
    a, b = _Counted(torch.randn(50, 12)), _Counted(torch.randn(70, 12))
    found = score_matrix(_Cosine(), a, b, ("a", "b"), block_bytes=4 * 48 * 7)
    assert a.largest == b.largest == 48 * 7
    expected = nn.functional.normalize(a.values) @ nn.functional.normalize(b.values).T
    torch.testing.assert_close(found, expected)


class _Cosine(Contrastive):
    def __init__(self) -> None:
        nn.Module.__init__(self)

    def score(self, a: Tensor, b: Tensor, names: tuple[str, str]) -> Tensor:
        return nn.functional.normalize(a) @ nn.functional.normalize(b).T


_PEAK = """
import torch
from pathlib import Path
from consilience.data.schema import Kind
from consilience.encoders.build import EncoderConfig
from consilience.evaluation.scoring import score_matrix
from consilience.heads.matching import ScorerConfig, Seen
from consilience.methods.contrastive import Contrastive, ContrastiveConfig
torch.set_num_threads(1)
E, R, T = 256, 36, 256
config = ContrastiveConfig(networks=1, scorer=ScorerConfig(name="sgr", sim=8, steps=1, slots=R),
    encoders=EncoderConfig(embed=E, text="gru", regions=R, region_width=16, max_tokens=T, tokenizer="bytes"))
model = Contrastive(config, {"image": Kind.REGIONS, "text": Kind.TEXT}, 10).eval()
model.peers.net(0).sgraf.block_bytes = 8 << 20
class Made:
    def __init__(self, n, slots, used):
        self.n, self.slots, self.used = n, slots, used
    def __len__(self): return self.n
    def __getitem__(self, chosen):
        n = len(range(self.n)[chosen])
        slots = torch.nn.functional.normalize(torch.ones(n, self.slots, E), dim=2)
        mask = torch.zeros(n, self.slots, dtype=torch.bool); mask[:, :self.used] = True
        slots *= mask[:, :, None]
        return Seen(slots[:, 0], slots, mask).flat()
def status(name):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024
score_matrix(model, Made(40, R, R), Made(40, T, 1), ("image", "text"), block_bytes=4 << 20)
for block in (16 << 20, 1 << 30):
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    score_matrix(model, Made(100, R, R), Made(300, T, 1), ("image", "text"), block_bytes=block)
    print((status("VmHWM") - before) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure a peak")
def test_memory_stays_below_the_ceiling() -> None:
    """Rows of 82 MB, as much again where the scorer unpacks them: held at once, or in blocks of 16 MB in all."""

    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    small, large = map(float, done.stdout.split())
    assert small < 16 + 8 + 8  # blocks, the scorer's own, the allocator's slack
    assert large > 120


def test_rerank_is_exact_within_the_list() -> None:
    g = torch.Generator().manual_seed(0)
    exact = torch.rand(30, 80, generator=g)
    first = exact + 0.3 * torch.randn(30, 80, generator=g)
    calls = []

    def scorer(i: Tensor, j: Tensor) -> Tensor:
        calls.append(len(i))
        return exact[i, j]

    top = first.topk(20, dim=1).indices
    found = rerank(first, scorer, 20)
    assert sum(calls) == 30 * 20
    full = exact.argsort(dim=1, descending=True)
    for query in range(30):
        order = found[query].argsort(descending=True).tolist()
        listed = top[query].tolist()
        assert order[:20] == [item for item in full[query].tolist() if item in listed]
        rest = first[query].argsort(descending=True).tolist()[20:]
        assert order[20:] == rest
        # where the list holds the first items of the full order, ranks are those of the full scorer
        for rank, item in enumerate(full[query].tolist()):
            if item not in listed:
                break
            assert order[rank] == item
    torch.testing.assert_close(rerank(first, scorer, 1000), exact.double())
    with pytest.raises(InputError, match="at least one item"):
        rerank(first, scorer, 0)


def test_recall_is_exact_where_nothing_better_is_left_out() -> None:
    """A first stage that misses nobody above the true item gives the figures of scoring all pairs."""
    g = torch.Generator().manual_seed(1)
    exact = torch.rand(40, 40, generator=g) + 0.4 * torch.eye(40)
    first = exact + 0.02 * torch.randn(40, 40, generator=g)
    true, top = exact.diagonal()[:, None], 30
    better = exact >= true
    assert all(
        set(better[i].nonzero().view(-1).tolist()) <= set(first[i].topk(top).indices.tolist()) for i in range(40)
    )
    two = rerank(first, lambda i, j: exact[i, j], top)
    own = torch.arange(40)
    assert torch.equal(matching(two, own).image_to_text.rank, matching(exact, own).image_to_text.rank)


@pytest.mark.parametrize("scorer", ["sgr", "saf", "sgraf"])
def test_single_pairs_score_as_in_the_matrix(table: Table, scorer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = method(scorer), table.select()
    images, captions = (Represented(model, table, rows, name)[:] for name in KINDS)
    pairs = SlotPairs(model.peers, images, captions)
    whole = model.score(images, captions, ("image", "text"))
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij"))
    torch.testing.assert_close(pairs(i, j).view(24, 24), whole, atol=1e-6, rtol=0)
    vectors = [torch.stack([model.encode(b, n) for b in _batches(model, table, rows)])[0] for n in KINDS]
    torch.testing.assert_close(pairs.globals(), vectors[0] @ vectors[1].T, atol=1e-6, rtol=0)
    torch.testing.assert_close(rerank(pairs.globals(), pairs, 24).float(), whole, atol=1e-6, rtol=0)
    monkeypatch.setattr("consilience.evaluation.reranking._BYTES", 1)  # one pair at a time
    torch.testing.assert_close(pairs(i[::50], j[::50]), whole[i[::50], j[::50]], atol=1e-6, rtol=0)


def _batches(model: Contrastive, table: Table, rows: np.ndarray) -> list[Any]:
    from consilience.data.loader import read

    return list(read(table, rows, model.decode, 100))


def test_missing_regions_do_not_matter_to_single_pairs(table: Table) -> None:
    torch.manual_seed(3)
    peers = Peers(
        1,
        ScorerConfig(name="sgr", sim=6, steps=2, slots=REGIONS, batch_norm=False),
        EncoderConfig(**{**SIZES, "embed": EMBED, "text": "gru"}),
        ViewConfig(),
        KINDS,
    ).eval()
    slots = nn.functional.normalize(torch.randn(5, REGIONS, EMBED), dim=2)
    mask = torch.arange(REGIONS) < torch.tensor([4, 2, 3, 1, 4])[:, None]
    images = torch.cat([(slots * mask[:, :, None]).flatten(1), mask.float()], 1)
    words = nn.functional.normalize(torch.randn(3, TOKENS, EMBED), dim=2)
    said = torch.arange(TOKENS) < torch.tensor([9, 2, 5])[:, None]
    captions = torch.cat([(words * said[:, :, None]).flatten(1), said.float()], 1)
    pairs = SlotPairs(peers, images, captions)
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(5), torch.arange(3), indexing="ij"))
    torch.testing.assert_close(
        pairs(i, j).view(5, 3), peers.score(images, captions, ("image", "text")), atol=1e-6, rtol=0
    )


def test_cosine_needs_no_second_stage() -> None:
    with pytest.raises(InputError, match="needs no re-ranking"):
        SlotPairs(method("cosine").peers, torch.zeros(1, 5), torch.zeros(1, 5))
