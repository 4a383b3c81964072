"""PC2, NCR and the plain baseline: what their steps compute, from definitions, and what they must not do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from consilience.data.schema import Batch, Kind
from consilience.encoders.build import EncoderConfig
from consilience.errors import InputError
from consilience.heads.matching import ScorerConfig, Seen
from consilience.heads.pseudo_class import PseudoClassifier, fixed_slots
from consilience.losses.triplet import predicted_correspondence, soft_margin, triplet
from consilience.methods.base import Progress
from consilience.methods.contrastive import Contrastive, ContrastiveConfig
from consilience.methods.ncr import NCR, NCRConfig
from consilience.methods.pc2 import PC2, PC2Config
from consilience.views.geometry import ViewConfig

STILL = ViewConfig(rotate=0, scale=0, shear=0, shift=0, jitter=0, mask=0)
VECTORS = {"image": Kind.VECTOR, "text": Kind.VECTOR}
SIZES = EncoderConfig(vector_width=6)
PAPER: dict[str, Any] = {
    "ranking": "triplet",
    "head": "released",
    "stability": "oscillation",
    "captions": "batch",
    "memory": 0.0,
    "classes": 5,
}


def batch(n: int = 10, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(n, 6, generator=random) for name in VECTORS}
    seen = torch.ones(n, dtype=torch.bool)
    return Batch(torch.arange(n), values, {"image": seen, "text": seen.clone()})


def pc2(n: int = 10, **options: Any) -> PC2:
    torch.manual_seed(0)
    config = PC2Config(scorer=ScorerConfig(width=8), encoders=SIZES, views=STILL, **options)
    return PC2(config, VECTORS, n)


def seen_by(method: Any, k: int, data: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores and vectors of network k, in training mode as a step computes them."""
    image, text = method.peers.pair(k, data, (0, 0, 0))
    return method.peers.net(k).scores(image, text), image.vectors, text.vectors


def progress(name: str, number: int) -> Progress:
    return Progress(number, name, 0, 0.5, 0)


def test_warmup_is_the_mean_triplet_of_both_networks_plus_classes():
    method, data = pc2(**PAPER), batch()
    terms = method.step(data, progress("warmup", 0))
    expected = sum(triplet(seen_by(method, k, data)[0], 0.2, "mean").sum() for k in range(2))
    torch.testing.assert_close(terms["rank"], expected, atol=1e-5, rtol=1e-5)
    assert set(terms) == {"rank", "classes", "entropy"}
    assert terms["entropy"] < 0


def test_clean_step_uses_the_peers_split_and_rectified_margins():
    method, data = pc2(**PAPER), batch()
    w = torch.rand(2, 10, generator=torch.Generator().manual_seed(1))
    v = torch.rand(2, 10, generator=torch.Generator().manual_seed(2))
    method.beliefs.clean.copy_(w)
    method.beliefs.right.copy_(w > 0.5)
    method.stable.copy_(v)
    terms = method.step(data, progress("clean", 1))
    expected = torch.zeros(())
    for k in range(2):
        s, (own, steady) = seen_by(method, k, data)[0], (w[1 - k], v[1 - k])
        ids = [i for i in range(10) if own[i] > 0.5]
        y = torch.tensor([float(own[i] + (1 - own[i]) * steady[i] * (steady[i] > 0.5)) for i in ids])
        expected = expected + triplet(s[ids][:, ids], soft_margin(y, 0.2), "hard").sum()
    torch.testing.assert_close(terms["rank"], expected, atol=1e-5, rtol=1e-5)


def test_borrowed_captions_of_the_paper_follow_their_definition():
    """Nearest clean image by cosine of predictions; trust 0 below the cut; a shared caption is no negative."""
    method, data = pc2(**PAPER, cut=0.2), batch()
    right = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0, 0, 1], [1, 0, 0, 1, 0, 1, 0, 1, 0, 1]], dtype=torch.bool)
    method.beliefs.right.copy_(right)
    terms = method.step(data, progress("full", 2))
    expected = torch.zeros(())
    for k in range(2):
        image, _ = method.peers.pair(k, data, (0, 0, 0))
        s = seen_by(method, k, data)[0]
        p = method._logits(k, image).softmax(1)
        clean = [i for i in range(10) if right[1 - k, i]]
        noisy = [i for i in range(10) if not right[1 - k, i]]
        chosen, y = [], []
        for i in noisy:
            cosines = [float(F.cosine_similarity(p[i], p[j], dim=0).detach()) for j in clean]
            chosen.append(clean[max(range(len(clean)), key=cosines.__getitem__)])
            y.append(max(cosines) if max(cosines) >= 0.2 else 0.0)
        edge = soft_margin(torch.tensor(y), 0.2)
        for a, i in enumerate(noisy):
            forth, back = [0.0], [0.0]
            for b in range(len(noisy)):
                if chosen[b] != chosen[a]:
                    forth.append(float(edge[a] - s[i, chosen[a]] + s[i, chosen[b]]))
                    back.append(float(edge[a] - s[i, chosen[a]] + s[noisy[b], chosen[a]]))
            expected = expected + max(forth) + max(back)
    torch.testing.assert_close(terms["borrowed"], expected, atol=1e-4, rtol=1e-4)


class Whole:
    """The training set as a method sees it, from one batch in memory."""

    def __init__(self, method: Any, data: Batch) -> None:
        self.method, self.data = method, data

    def __call__(self) -> Any:
        from consilience.methods.base import Encoded

        self.method.eval()
        vectors = {name: self.method.encode(self.data, name) for name in VECTORS}
        self.method.train()
        return Encoded(vectors, self.data.present)

    def scan(self, measure: Any, batch_size: int) -> dict[str, torch.Tensor]:
        self.method.eval()
        found = dict(measure(self.data))
        self.method.train()
        return found


def test_oscillation_compares_a_pair_with_its_own_past():
    method, data = pc2(**PAPER), batch()
    look = Whole(method, data)
    method.prepare(Progress(0, "warmup", method.config.warmup_epochs - 1, 0.0, 0), look)
    before = method.bank.clone()
    assert bool(method.banked)
    method.prepare(progress("clean", 1), look)
    assert torch.equal(method.bank, before)  # nothing trained in between: no prediction moved
    assert torch.equal(method.stable, torch.ones(2, 10))  # equal oscillation says nothing against anybody
    with torch.no_grad():
        method.heads[0].head[2].bias[1] += 3
    method.prepare(progress("clean", 1), look)
    assert not torch.equal(method.bank[0], before[0])
    assert torch.equal(method.bank[1], before[1])


def test_memory_lends_only_captions_of_other_clean_pairs():
    method, data = pc2(captions="memory", neighbours=3, cut=-1.0, classes=4), batch()
    look = Whole(method, data)
    method.prepare(progress("full", 2), look)
    encoded = look()
    for k in range(2):
        peer = F.normalize(encoded.vectors["image"].chunk(2, 1)[1 - k], dim=1)
        clean = [i for i in range(10) if method.beliefs.right[1 - k, i]]
        for i in range(10):
            near = sorted((j for j in clean if j != i), key=lambda j: -float(peer[i] @ peer[j]))[:3]
            assert set(method.borrowed[k, i].tolist()) == set(near)
    terms = method.step(data, progress("full", 2))
    assert torch.isfinite(terms["borrowed"])


def test_small_loss_warmup_leaves_the_worse_half_out():
    method, data = pc2(**{**PAPER, "pse_weight": 0.0, "entropy_weight": 0.0}, warmup="small-loss"), batch()
    terms = method.step(data, progress("warmup", 0))
    expected = 0.0
    for k in range(2):
        losses = triplet(seen_by(method, k, data)[0], 0.2, "mean")
        expected += float(losses.sort().values[:5].sum())
    assert float(terms["rank"]) == pytest.approx(expected, rel=1e-4)


def test_balanced_classes_do_not_collapse_where_the_released_head_does():
    """Only the classifiers are trained, on fixed vectors of eight well separated groups."""
    centres = F.normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(3)), dim=1)
    data = batch(64)
    for name in VECTORS:
        data.values[name].copy_(centres[torch.arange(64) % 8] + 0.05 * data.values[name])
    used = {}
    for head in ("released", "balanced"):
        method = pc2(64, **{**PAPER, "head": head, "classes": 8})
        optimiser = torch.optim.Adam(method.parameters(), 5e-3)
        for _ in range(150):
            terms = method.step(data, progress("warmup", 0))
            optimiser.zero_grad()
            torch.stack([v for name, v in terms.items() if name != "rank"]).sum().backward()
            optimiser.step()
        image, _ = method.peers.pair(0, data, (0, 0, 0))
        used[head] = len(method._logits(0, image).argmax(1).unique())
    assert used["balanced"] >= 6
    assert used["released"] <= 2


def test_ncr_rectifies_both_parts_as_the_paper_says():
    torch.manual_seed(0)
    method, data = NCR(NCRConfig(scorer=ScorerConfig(width=8), encoders=SIZES, views=STILL), VECTORS, 10), batch()
    w = torch.tensor([[0.9, 0.8, 0.1, 0.7, 0.2, 0.95, 0.3, 0.6, 0.4, 0.99]]).repeat(2, 1)
    method.beliefs.clean.copy_(w)
    method.beliefs.right.copy_(w > 0.5)
    terms = method.step(data, progress("full", 2))
    scores = [seen_by(method, k, data)[0] for k in range(2)]
    clean, noisy = torch.nonzero(w[0] > 0.5)[:, 0], torch.nonzero(w[0] <= 0.5)[:, 0]
    guess = [predicted_correspondence(s[noisy][:, noisy], 0.2) for s in scores]
    expected = {"clean": torch.zeros(()), "noisy": torch.zeros(())}
    for s in scores:
        part = s[clean][:, clean]
        y = w[0, clean] + (1 - w[0, clean]) * predicted_correspondence(part, 0.2)
        expected["clean"] += triplet(part, soft_margin(y, 0.2), "hard").sum().detach()
        y = (guess[0] + guess[1]) / 2
        expected["noisy"] += triplet(s[noisy][:, noisy], soft_margin(y, 0.2), "hard").sum().detach()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].detach(), value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objective", ["infonce", "triplet-hard", "triplet-mean"])
def test_baselines_sum_over_their_networks(objective):
    torch.manual_seed(0)
    config = ContrastiveConfig(objective=objective, scorer=ScorerConfig(width=8), encoders=SIZES, views=STILL)
    method, data = Contrastive(config, VECTORS, 10), batch()
    (value,) = method.step(data, progress("train", 0)).values()
    expected = torch.zeros(())
    for k in range(2):
        s = seen_by(method, k, data)[0]
        own = torch.arange(10)
        if objective == "infonce":
            expected = expected + (F.cross_entropy(s / 0.1, own) + F.cross_entropy(s.T / 0.1, own)) / 2
        else:
            expected = expected + triplet(s, 0.2, "hard" if objective == "triplet-hard" else "mean").sum()
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)


def test_swapping_the_networks_changes_no_score():
    method, data = pc2(classes=4).eval(), batch()
    a, b = method.represent(data, "image"), method.represent(data, "text")
    before = method.score(a, b, ("image", "text"))
    torch.testing.assert_close(method.score(b, a, ("text", "image")), before.T)
    method.peers.nets = torch.nn.ModuleList(reversed(list(method.peers.nets)))
    a, b = method.represent(data, "image"), method.represent(data, "text")
    torch.testing.assert_close(method.score(a, b, ("image", "text")), before)
    each = [
        F.cosine_similarity(x.vectors[:, None], y.vectors[None], dim=2)
        for x, y in (method.peers.pair(k, data) for k in range(2))
    ]
    torch.testing.assert_close((each[0] + each[1]) / 2, before, atol=1e-5, rtol=1e-5)


def test_caption_class_does_not_change_when_its_batch_gains_a_longer_caption():
    torch.manual_seed(0)
    head = PseudoClassifier(4, 5, 6)
    words = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    words = words * mask[:, :, None]
    alone = head(words, mask)
    longer = F.pad(words, (0, 0, 0, 9))
    torch.testing.assert_close(head(longer, F.pad(mask, (0, 9))), alone)


def test_fixed_slots_centres_short_captions_and_interpolates_long_ones():
    words = torch.arange(1.0, 11.0).view(1, 10, 1)
    three = torch.zeros(1, 10, dtype=torch.bool)
    three[:, :3] = True
    assert fixed_slots(words * three[:, :, None], three, 6).flatten().tolist() == [0, 1, 2, 3, 0, 0]
    everything = torch.ones(1, 10, dtype=torch.bool)
    expected = F.interpolate(words.transpose(1, 2), 6, mode="linear", align_corners=False).flatten()
    torch.testing.assert_close(fixed_slots(words, everything, 6).flatten(), expected)


def test_sgraf_represents_and_scores_as_the_step_does():
    torch.manual_seed(0)
    kinds = {"image": Kind.REGIONS, "text": Kind.TEXT}
    encoders = EncoderConfig(
        text="gru", embed=12, regions=4, region_width=7, max_tokens=9, tokenizer="bytes", text_layers=1
    )
    scorer = ScorerConfig(name="sgr", sim=6, slots=4)
    config = PC2Config(scorer=scorer, encoders=encoders, views=STILL, **PAPER)
    method = PC2(config, kinds, 6)
    tokens = torch.randint(0, 260, (6, 9))
    tokens[2:, 5:] = -1
    seen = torch.ones(6, dtype=torch.bool)
    data = Batch(torch.arange(6), {"image": torch.randn(6, 4, 7), "text": tokens}, {"image": seen, "text": seen})
    terms = method.step(data, progress("clean", 1))
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None for p in method.peers.parameters())
    method.eval()
    a, b = method.represent(data, "image"), method.represent(data, "text")
    whole = method.score(a, b, ("image", "text"))
    each = [method.peers.net(k).scores(*method.peers.pair(k, data)) for k in range(2)]
    torch.testing.assert_close(whole, (each[0] + each[1]) / 2, atol=1e-6, rtol=1e-5)
    assert method.encode(data, "image").shape[0] == 6
    for options in ({"captions": "memory"}, {"ranking": "infonce"}):
        with pytest.raises(InputError, match="SGRAF"):
            dataclasses.replace(config, **options)


def test_three_modalities_are_refused_with_the_flag():
    with pytest.raises(InputError, match=r"--train\.modalities"):
        Contrastive(ContrastiveConfig(), {**VECTORS, "points": Kind.POINTS}, 4)


def test_seen_rows_survive_flattening():
    slots, mask = torch.randn(3, 4, 5), torch.rand(3, 4) > 0.3
    back = Seen.unflat(Seen(torch.zeros(3, 5), slots, mask).flat(), 5)
    assert torch.equal(back.slots, slots)
    assert torch.equal(back.mask, mask)


def test_soft_division_weighs_noisy_pairs_by_their_posterior():
    data, w = batch(), torch.rand(2, 10, generator=torch.Generator().manual_seed(1))
    for division in ("hard", "soft"):
        method = pc2(classes=4, division=division, stability="none", pse_weight=0.0)
        method.beliefs.clean.copy_(w)
        method.beliefs.right.copy_(w > 0.5)
        found = method.step(data, progress("clean", 1))["rank"]
        expected = torch.zeros(())
        for k in range(2):
            s, own = seen_by(method, k, data)[0] / 0.1, torch.arange(10)
            each = F.cross_entropy(s, own, reduction="none") + F.cross_entropy(s.T, own, reduction="none")
            weights = w[1 - k] if division == "soft" else w[1 - k] * (w[1 - k] > 0.5)
            expected = expected + (weights * each).sum() / weights.sum() / 2
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
