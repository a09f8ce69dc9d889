"""Makes support.jsonl: 1,000 requests of a bank's support desk, from the questions in data/.

    python examples/make_support.py            writes examples/support.jsonl
    python examples/make_support.py --check    ends with 1 where that file differs from what would be written

The same on every machine. Each part gives one stage something to do:

    77   questions, one an intent           provider
    350  the same in other words            semantic cache, coalescing
    150  the very same request again        exact cache, single flight
    383  of one customer's own details      provider, batches
    40   that ask for thought               routing
"""

import csv
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUTPUT = HERE / "support.jsonl"

FAQ = (
    "You are the support assistant of Meridian Bank. Answer the customer's question in at most three sentences, in plain "
    "words. Say what to do in the app first. Never ask for a PIN, a password or a full card number. If the question can't "
    "be answered in general, say which details a colleague will need."
)
CHAT = {
    "control": FAQ + " The customer is in a chat: be friendly and address what they say about their own case.",
    "concise": FAQ + " The customer is in a chat: answer in one sentence, without greeting, and address their own case.",
}
TRIAGE = (
    "You sort tickets of Meridian Bank. Answer with one line: TEAM=<cards|transfers|top-ups|identity|disputes> "
    "URGENCY=<low|normal|high> and a summary of at most twelve words."
)
ADVICE = (
    "You advise the support leads of Meridian Bank. Reason step by step, name what you assume, and end with a "
    "recommendation that can be carried out tomorrow."
)
USERS = [f"agent-{n:02d}" for n in range(1, 17)]
MERCHANTS = (
    "Corner Bakery",
    "Northline Rail",
    "Halden Books",
    "Pico Pharmacy",
    "Juniper Hotel",
    "Ostro Fuel",
    "Vela Market",
    "Tarn Outdoor",
)
CURRENCIES = ("EUR", "GBP", "USD", "CHF", "SEK")
OPENINGS = ("Hello, ", "Hi there. ", "Please help: ", "Quick question: ", "Good morning, ")
CLOSINGS = (" Thanks!", " Thank you.", " Please advise.", " Cheers")
ADVICE_TASKS = (
    "Analyze why complaints of the kind '{intent}' rise at the end of a month, compare three causes, and explain how to "
    "tell them apart with the data of our ticket database.",
    "Design a policy for '{intent}': derive the decision rules, evaluate the trade-offs between fraud risk and customer "
    "effort, and justify the thresholds that you propose.",
    "Evaluate two ways of handling '{intent}', self-service in the app and a specialist team. Estimate cost and "
    "satisfaction for each, state the assumptions, and argue step by step for one of them.",
    "Draft a detailed investigation plan for a cluster of tickets about '{intent}': which hypotheses to test, which SQL "
    "queries on the transactions table would refute each, and what compliance must be told.",
)


@dataclass(frozen=True)
class Ask:
    """One request without its id and user."""

    feature: str
    system: str
    text: str
    model: str = "auto"
    max_tokens: int = 120
    engine: dict[str, str] = field(default_factory=dict)


def read_questions() -> dict[str, list[str]]:
    """Texts by intent, in the order of the file."""
    with (HERE / "data" / "banking77_slice.csv").open(encoding="utf-8", newline="") as file:
        questions: dict[str, list[str]] = {}
        for row in csv.DictReader(file):
            questions.setdefault(row["category"], []).append(row["text"])
    return questions


def faq(text: str) -> Ask:
    return Ask("faq", FAQ, text)


def reworded(dice: random.Random, questions: dict[str, list[str]], count: int) -> list[Ask]:
    """Other texts of an intent, and its first text with a greeting or thanks."""
    others = [text for texts in questions.values() for text in texts[1:5]]
    picked = dice.sample(others, count * 2 // 3)
    firsts = [texts[0] for texts in questions.values()]
    dressed = [
        f"{o}{t}{c}" for o in (*OPENINGS, "") for c in (*CLOSINGS, "") for t in firsts if o or c
    ]  # all different from each other and from the first texts
    return [faq(text) for text in [*picked, *dice.sample(dressed, count - len(picked))]]


def detailed(dice: random.Random, questions: dict[str, list[str]], count: int) -> Iterator[Ask]:
    """A customer's own case: an amount, a day and a place that no other request has."""
    texts = [text for texts in questions.values() for text in texts[5:]]
    for number, text in enumerate(dice.sample(texts, count)):
        amount = f"{dice.choice(CURRENCIES)} {dice.randint(3, 900)}.{dice.randint(0, 99):02d}"
        case = f"Ticket {70000 + 7 * number}: {text} It is about {amount} at {dice.choice(MERCHANTS)} on {dice.randint(1, 28)} October."
        if number % 3 == 0:
            yield Ask("chat", "", case, engine={"priority": "express"} if number % 9 == 0 else {})
        else:
            model = {1: "gpt-4o-mini", 7: "gpt-4.1", 13: "claude-sonnet-4-5"}.get(number % 20, "auto")
            yield Ask("triage", TRIAGE, case, model=model, engine={"priority": "batch"})


def thoughtful(dice: random.Random, questions: dict[str, list[str]], count: int) -> Iterator[Ask]:
    intents = dice.sample(sorted(questions), count)
    for number, intent in enumerate(intents):
        task = ADVICE_TASKS[number % len(ADVICE_TASKS)].format(intent=intent.replace("_", " "))
        yield Ask("advice", ADVICE, task, max_tokens=600)


def arrivals(dice: random.Random) -> list[tuple[Ask, str]]:
    """(request, user) in the order of arrival; a repeat comes after what it repeats."""
    questions = read_questions()
    first = [faq(texts[0]) for texts in questions.values()]
    rest = [*reworded(dice, questions, 350), *detailed(dice, questions, 383), *thoughtful(dice, questions, 40)]
    asked = [(ask, dice.choice(USERS)) for ask in [*first, *rest]]
    dice.shuffle(asked)
    for _ in range(150):
        # Early requests are repeated more often than late ones, and mostly by someone else.
        source = min(dice.randrange(len(asked)), dice.randrange(len(asked)))
        ask, user = asked[source]
        asked.insert(dice.randint(source + 1, len(asked)), (ask, user if ask.feature == "chat" else dice.choice(USERS)))
    return asked


def line_of(number: int, ask: Ask, user: str, variants: dict[str, str]) -> dict[str, Any]:
    engine: dict[str, str] = {"user_id": user, "feature_name": ask.feature, **ask.engine}
    system = ask.system
    if ask.feature == "chat":
        variant = variants[user]
        engine |= {"experiment_id": "chat-tone", "experiment_variant": variant}
        system = CHAT[variant]
    messages = [{"role": "system", "content": system}, {"role": "user", "content": ask.text}]
    body = {"model": ask.model, "messages": messages, "temperature": 0, "max_tokens": ask.max_tokens}
    return {"custom_id": f"support-{number:04d}", "method": "POST", "url": "/v1/chat/completions", "body": body, "engine": engine}


def render() -> str:
    """The whole file."""
    dice = random.Random("meridian support desk")
    variants = {user: ("control", "concise")[n % 2] for n, user in enumerate(USERS)}
    asked = arrivals(dice)
    return "".join(json.dumps(line_of(n, ask, user, variants), ensure_ascii=False) + "\n" for n, (ask, user) in enumerate(asked, 1))


def main() -> int:
    text = render()
    if "--check" in sys.argv[1:]:
        same = OUTPUT.read_text("utf-8") == text
        print(f"{OUTPUT.name} is {'what this program writes' if same else 'NOT what this program writes: run it without --check'}")
        return 0 if same else 1
    OUTPUT.write_text(text, "utf-8", newline="\n")
    print(f"wrote {text.count(chr(10)):,} requests to {OUTPUT.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
