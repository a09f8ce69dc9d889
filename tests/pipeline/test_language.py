"""What language a prompt is in is told where that is plain, and not guessed where it is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.language import NOT_KNOWN, languages_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of France and how can I get there with my bike?", "en"),
        ("Wie kann ich mit dem Zug von Bonn zu der Stadt kommen, und was ist nicht erlaubt?", "de"),
        ("¿Cómo puedo cambiar la contraseña de mi cuenta si no está en el correo que se envía?", "es"),
        ("Comment est-ce que je peux changer le mot de passe dans les réglages du compte pour la banque ?", "fr"),
        ("日本の首都はどこですか。教えてください。", "ja"),
        ("대한민국의 수도는 어디입니까?", "ko"),
        ("เมืองหลวงของประเทศไทยคืออะไร", "th"),
        ("Ποια είναι η πρωτεύουσα της Ελλάδας;", "el"),
    ],
)
def test_a_plain_text_is_told(text: str, language: str) -> None:
    assert languages_of(text) == {language}


def test_languages_that_share_a_script_are_all_possible() -> None:
    assert {"ru", "uk", "bg"} <= languages_of("Какая столица Франции?")
    assert languages_of("法国的首都是哪里") == {"zh", "ja"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42 + 17 = ?",
        "ok",
        "def f(x): return x ** 2",
        "Hallo Welt",
        "ᚠᛇᚻ ᛒᛦᚦ ᚠᚱᚩᚠᚢᚱ ᚠᛁᚱᚪ",
        "translate привет мир to English please",
        "Où?",
        "o que e um para com uma de como e o que y es un una por para con que como",
    ],
)
def test_what_is_short_mixed_or_unknown_is_not_told(text: str) -> None:
    assert languages_of(text) == NOT_KNOWN


@given(st.text(max_size=200))
def test_any_text_is_told_or_not_and_never_fails(text: str) -> None:
    assert all(len(language) == 2 for language in languages_of(text))


@given(
    st.text(alphabet="αβγδεζηθικλμνξοπρστυφχψω ", min_size=20, max_size=60).filter(lambda t: len(t.replace(" ", "")) >= 4),
    st.integers(0, 5),
)
def test_digits_and_signs_between_do_not_change_what_is_told(text: str, signs: int) -> None:
    assert languages_of(text + "3, ! " * signs) == {"el"}
