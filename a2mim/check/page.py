"""docs/backbones.md: what a survey found, one row a family."""

import timm

from a2mim.check.survey import OWN, families

HEAD = """\
# Which networks can be pre-trained

Any that maps images to a feature map. This page is written by `python tools/check_models.py --write docs/backbones.md`
(timm {version}); `a2mim check-model NAME` prints the same for one network, and for a network of your own:
[your_network.md](your_network.md).

**{names_ok:,} of {names_tried:,} names wired, of {names:,} that there are; {families_ok} of {families} families proven.**

Wired: the network is built at its own size on the meta device, the rule finds a place for the mask token, and what the
decoders make of its maps is as large as the image. Nothing is computed there, so layouts are guessed from shapes (wrongly
for `efficientvim_m2`, whose hidden states are as many as 16 × 16 tokens); with real weights they are measured.

Proven, with real weights, for the smallest member of each family, at the size that the table states:

- the layout of every map is measured, the table says how, or it says "shape";
- two training steps have a finite loss, and give a gradient to the token, the decoders and every parameter of the encoder
  that the maps depend on, and to no other; biases in front of BatchNorm, where it is zero by arithmetic, excepted;
- the token changes hidden positions only;
- the state dictionary loads strictly into plain timm, whose features then differ by at most {difference:.0e} of the largest;
- gradient checkpointing, where the network has it, gives the token the same gradient.

| column | what it says |
|---|---|
| names | wired / tried / there are, in this module of timm.models (or of a2mim) |
| proven | the smallest member, and the side in pixels of the images that it was proven on |
| token at | the module whose output takes the token, pixels per cell, layout (+ tokens that are no cell); several where a module hands on several maps |
| maps | channels × pixels per cell of each map that is decoded |
| measured by | timm's own maps, coded impulses, or stripes on the image; "shape": a guess |
| frozen | share of the parameters behind the maps, which get no gradient: they arrive as initialised at fine-tuning |
| sizes | that the proven member takes beside its own; square unless written out |
| ckpt | gradient checkpointing |

| family | names | proven | token at | maps | measured by | frozen | sizes | ckpt |
|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501  rows of tables


def write_page(wired: dict[str, dict], proved: dict[str, dict]) -> str:
    """The page. Records by name, as `a2mim.check.survey` makes them; what was not tried is counted as not tried."""
    found = families()
    rows = [_row(family, names, wired, proved) for family, names in found.items()]
    good = [name for name, record in wired.items() if "error" not in record]
    proven = [_proof_of(names, proved) for names in found.values()]
    head = HEAD.format(
        version=timm.__version__,
        names_ok=len(good),
        names_tried=len(wired),
        difference=max((record.get("difference", 0.0) for record in proved.values()), default=0.0),
        names=sum(map(len, found.values())),
        families_ok=sum(p is not None and not _faults(p) for p in proven),
        families=len(found),
    )
    return head + "\n".join(rows) + "\n" + _failures(wired, proved)


def _proof_of(names: list[str], proved: dict[str, dict]) -> dict | None:
    return next((proved[name] for name in names if name in proved), None)


def _faults(record: dict) -> list[str]:
    return [record["error"]] if "error" in record else record.get("faults", [])


def _row(family: str, names: list[str], wired: dict, proved: dict) -> str:
    tried = [wired[name] for name in names if name in wired]
    counts = f"{sum('error' not in r for r in tried)} / {len(tried)} / {len(names)}"
    title = f"`{family}`" + (" (a2mim)" if family in OWN else "")
    proof = _proof_of(names, proved)
    if proof is None:
        return f"| {title} | {counts} | not tried | | | | | | |"
    if _faults(proof):
        return f"| {title} | {counts} | `{proof['name']}`: no, see below | | | | | | |"
    side = " × ".join(map(str, dict.fromkeys(proof["img_size"])))
    places = dict.fromkeys(place[0] for place in proof["sites"])
    sites = "; ".join(
        f"`{place}`: " + ", ".join(f"{s[1]:.4g} px {s[2]}" for s in proof["sites"] if s[0] == place) for place in places
    )
    maps = ", ".join(f"{m[0]} × {m[1]:.4g}" for m in proof["maps"])
    evidence = ", ".join(dict.fromkeys(m[3] for m in proof["sites"] + proof["maps"]))
    sizes = ", ".join(
        str(s) if isinstance(s, int) else "×".join(map(str, s)) for s in proof["sizes"] if s not in proof["img_size"]
    )
    frozen = "" if proof["frozen_share"] < 5e-4 else f"{proof['frozen_share']:.1%}"
    cells = [title, counts, f"`{proof['name']}`, {side}", sites, maps, evidence, frozen, sizes or "none"]
    return f"| {' | '.join([*cells, 'yes' if proof['checkpointing'] else ''])} |"


def _failures(wired: dict, proved: dict) -> str:
    """What did not work, with its reason."""
    lines = [f"- `{name}`: {record['error']}" for name, record in wired.items() if "error" in record]
    lines += [f"- `{name}`, proof: {'; '.join(_faults(r)[:3])}" for name, r in proved.items() if _faults(r)]
    return "\n## What does not work\n\n" + ("\n".join(lines) if lines else "Nothing of what was tried.") + "\n"
