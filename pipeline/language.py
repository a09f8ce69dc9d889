"""Which language a prompt may be in: told by its script, and in Latin script by the commonest short words of a few languages.

It is for leaving out models, so it says nothing rather than something wrong: several languages where they share a script, none where a text
is short, mixed or in a language that is not listed. Language codes are those of ISO 639-1.
"""

import re
import unicodedata
from collections import Counter

MOST_CHARACTERS = 2_000
"""Of a text that are looked at."""
_LEAST_LETTERS = 4
_MOSTLY = 0.6
"""Share of the letters that are of one script."""
_LEAST_WORDS = 4
"""Short words of a language that a text must have, and twice as many as of any other."""

_SCRIPTS: dict[str, frozenset[str]] = {
    "ARABIC": frozenset({"ar", "fa", "ps", "sd", "ug", "ur"}),
    "ARMENIAN": frozenset({"hy"}),
    "BENGALI": frozenset({"as", "bn"}),
    "CJK": frozenset({"ja", "zh"}),
    "CYRILLIC": frozenset({"be", "bg", "kk", "ky", "mk", "mn", "ru", "sr", "tg", "tt", "uk"}),
    "DEVANAGARI": frozenset({"hi", "mr", "ne", "sa"}),
    "GEORGIAN": frozenset({"ka"}),
    "GREEK": frozenset({"el"}),
    "GUJARATI": frozenset({"gu"}),
    "GURMUKHI": frozenset({"pa"}),
    "HANGUL": frozenset({"ko"}),
    "HEBREW": frozenset({"he", "yi"}),
    "HIRAGANA": frozenset({"ja"}),
    "KANNADA": frozenset({"kn"}),
    "KATAKANA": frozenset({"ja"}),
    "KHMER": frozenset({"km"}),
    "LAO": frozenset({"lo"}),
    "MALAYALAM": frozenset({"ml"}),
    "MYANMAR": frozenset({"my"}),
    "SINHALA": frozenset({"si"}),
    "TAMIL": frozenset({"ta"}),
    "TELUGU": frozenset({"te"}),
    "THAI": frozenset({"th"}),
}
"""First word of a character's Unicode name -> languages written in it."""

_SHORT_WORDS = {
    "de": "der die das und ist nicht ich ein eine zu mit von für auf dem den wie kann sich auch",
    "en": "the and is of to in that it you for what how are with this on be my can i",
    "es": "el la los las que y es un una por para con no cómo qué del se mi está lo",
    "fr": "le la les et est un une des que qui pour dans je vous pas ce comment sur du au",
    "it": "il la che di e un una per non con sono come del della è mi si gli le questo",
    "nl": "de het een en van is dat niet ik te met voor hoe zijn op aan wat er kan mijn",
    "pl": "i w nie na się jest to z do że jak co czy dla mój po od tak przez są",
    "pt": "o a os as que e é um uma de para com não como do da em se meu por",
    "sv": "och att det i en är som på jag för av inte till med har kan hur vad min om",
    "tr": "bir ve bu için ne nasıl da de mi ile çok var ben değil olan gibi daha olarak kadar en",
}
_WORDS = {language: frozenset(words.split()) for language, words in _SHORT_WORDS.items()}
_WORD = re.compile(r"[^\W\d_]+")
NOT_KNOWN: frozenset[str] = frozenset()


def languages_of(text: str) -> frozenset[str]:
    """Languages that the text may be in; empty: not known, it may be any."""
    head = text[:MOST_CHARACTERS]
    if head.isascii():
        return _latin(head)
    scripts = Counter(_script(c) for c in head if c.isalpha())
    letters = sum(scripts.values())
    if letters < _LEAST_LETTERS:
        return NOT_KNOWN
    # A Japanese text is a mixture of three scripts, mostly of the one that it shares.
    kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
    if kana >= _LEAST_LETTERS and (kana + scripts["CJK"]) >= _MOSTLY * letters:
        return _SCRIPTS["HIRAGANA"]
    script, count = scripts.most_common(1)[0]
    if count < _MOSTLY * letters:
        return NOT_KNOWN
    return _latin(head) if script == "LATIN" else _SCRIPTS.get(script, NOT_KNOWN)


def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ", 1)[0]


def _latin(text: str) -> frozenset[str]:
    words = Counter(_WORD.findall(text.lower()))
    found = sorted(((sum(words[w] for w in known), language) for language, known in _WORDS.items()), reverse=True)
    (most, language), (second, _) = found[:2]
    return frozenset({language}) if most >= _LEAST_WORDS and most >= 2 * second else NOT_KNOWN
