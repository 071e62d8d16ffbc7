"""Process data in parallel with remote functions: plain Python functions, each call of which runs in a sandbox."""

from collections import Counter

from cwsandbox import Session

PAGES = [
    "the quick brown fox jumps over the lazy dog",
    "the dog sleeps and the fox runs",
    "a quick dog and a lazy fox",
]
STOP_WORDS = ["a", "and", "over", "the"]

with Session() as session:

    def words(text: str) -> list[str]:
        """A helper: it travels with the function that uses it, and so does what that one captures."""
        return [word for word in text.split() if word not in STOP_WORDS]

    @session.function()
    def count(text: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for word in words(text):
            found[word] = found.get(word, 0) + 1
        return found

    total: Counter[str] = Counter()
    for ref in count.map([(page,) for page in PAGES], max_concurrency=8):
        total.update(ref.result())

print(total.most_common(2))
