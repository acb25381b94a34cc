"""What a file's name says about a scan where it follows no data set's layout: BIDS names, and names given by hand.

The last word that names a sequence tells it (``sub-01_T1w``, ``jane-t2f``, ``flair``). Behind it only words count that
say what was done with the image (``jane_T1_bet``, ``FLAIR_reg``) or that a contrast agent was given (``jane_T1_post``);
any other makes the name say nothing. A T1 with contrast agent is a sequence of its own, and names often say so before
a plain T1 ending (``sub-01_ce-gadolinium_T1w``, ``jane_post_T1``): taken for a T1 without it, the network would be told
of a scan that the patient does not have.
"""

import re
from dataclasses import dataclass

ENDINGS: dict[str, str] = {
    **dict.fromkeys(("flair", "t2f"), "flair"),
    **dict.fromkeys(("t1ce", "t1c", "t1gd"), "t1ce"),
    **dict.fromkeys(("t1", "t1n", "t1w"), "t1"),
    **dict.fromkeys(("t2", "t2w"), "t2"),
    **dict.fromkeys(("seg", "segm", "label"), "label"),
}

# Words for a contrast agent; "post" and "ce" also mean other things, which their neighbours tell.
_AGENT = re.compile(
    r"(t1|t1w)?(post)?(gd|gad|gado|gadolinium|gadobutrol|gadovist|gadoterate|contrast)(enhanced)?|t1ce|t1c|ce|enhanced|"
    r"(t1|t1w)?post|postce",
    re.IGNORECASE,
)
# In BIDS the acquisition is one word without separators, such as acq-mprageGd.
_AGENT_IN_ACQUISITION = re.compile(r"(?!.*(pre|non?|without)(gd|gad|contrast|ce)).*(gd|gad|contrast)", re.IGNORECASE)
_WITHOUT = ("pre", "no", "non", "not", "none", "without", "before")
_NAMES_FOLLOW = ("sub", "subject", "ses", "session", "visit", "timepoint", "tp", "patient", "pat", "id")
_AFTER_TREATMENT = re.compile(r"op|operative|operation|surgery|surgical|resection|treatment|therapy|rt|chemo|tx")
# Words for what was done with an image, which is of the same sequence still.
_DONE = re.compile(
    r"bet|brain|stripped|skullstripped|skull|strip|ss|hdbet|synthstrip|reg|registered|coreg|coregistered|aligned|warped|"
    r"resampled|reoriented|n4|bfc|bias|corrected|biascorrected|norm|normalized|normalised|denoised|defaced|cropped|"
    r"preproc|processed|mni|mni152|sri|sri24|iso|1mm|to|in|space"
)
_BIDS = re.compile(r"(?P<subject>sub-[a-z0-9]+(?:_ses-[a-z0-9]+)?)(?:_.*)?", re.IGNORECASE)


@dataclass(frozen=True)
class FreeName:
    """What a name says.

    Attributes:
        role: a modality or "label".
        case: the rest of the name, which the files of a case share; "" where there is none.
        layout: "brats2023" where the ending is spelt as in that data set, else None.
    """

    role: str
    case: str
    layout: str | None = None


def read_free_name(stem: str) -> FreeName | None:
    """What a file name says, or None if it tells no modality.

    Args:
        stem: the name without its suffix.
    """
    pieces = re.split(r"([_\-. ])", stem)
    words, separators = pieces[::2], ["", *pieces[1::2]]
    small = [word.lower() for word in words]
    places = [i for i, word in enumerate(small) if word in ENDINGS]
    if not places:
        return None
    place = places[-1]
    token, role = small[place], ENDINGS[small[place]]
    # A T2 with suppressed fluid is a FLAIR; a T1 may be one too, and what that name means nobody knows.
    start = place - 1 if token == "flair" and place and small[place - 1] in ("t2", "t2w") else place
    agents = _agents(small[:start])
    # Another sequence before it: FLAIR_to_T1 is a FLAIR, seg_T1 perhaps a label.
    if any(i < start and i not in agents for i in places):
        return None
    behind = _said_behind(small[place + 1 :])
    if behind is None or (behind == "without" and role == "t1ce"):
        return None
    if token in ("t1", "t1w") and (agents or behind == "with"):
        role = "t1ce"
    rest = "".join(separator + word for separator, word in zip(separators[:start], words[:start], strict=True))
    subject = _BIDS.fullmatch(rest)
    # Each word goes with the separator before it, so that jane_post_T1 and jane_T2 are of one case.
    kept = [separators[i] + words[i] for i in range(start) if i not in agents]
    case = subject["subject"] if subject else "".join(kept).strip("_-. ")
    spelt_as_2023 = separators[place] == "-" and token in ("t1n", "t1c", "t2w", "t2f")
    return FreeName(role, case, "brats2023" if spelt_as_2023 else None)


def _said_behind(words: list[str]) -> str | None:
    """What the words behind a sequence say of a contrast agent, "with", "without" or ""; None where one is unknown."""
    agents = _agents(words)
    said = "with" if agents else ""
    for i, word in enumerate(words):
        if i in agents or _DONE.fullmatch(word):
            continue
        following = words[i + 1] if i + 1 < len(words) else ""
        if word in (*_WITHOUT, "native") and (
            not following or _AGENT.fullmatch(following) or _DONE.fullmatch(following)
        ):
            said = "without"
        elif not (said == "without" and _AGENT.fullmatch(word)):
            return None
    return said


def _agents(words: list[str]) -> set[int]:
    """Positions of the words that say that a contrast agent was given; empty if one says that none was."""
    found = set()
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        after = words[i + 1] if i + 1 < len(words) else ""
        if before in _NAMES_FOLLOW:
            continue
        if before == "ce":
            # BIDS names the agent after "ce-", whatever it is called.
            if word in _WITHOUT:
                return set()
            found.add(i)
        elif before == "acq" and _AGENT_IN_ACQUISITION.match(word):
            found |= {i - 1, i}
        elif _AGENT.fullmatch(word):
            if before in _WITHOUT:
                return set()
            if not (word == "post" and _AFTER_TREATMENT.fullmatch(after)):
                found.add(i)
    return found
