from fedkd.units import ceiling, gap, number, percent, pieces, plain, points, seconds, short, size, whole


def test_shares_bytes_and_durations_are_written_as_people_write_them():
    assert [percent(v) for v in (0.879, 1.0, None)] == ["87.9%", "100.0%", "–"]
    assert [points(v) for v in (0.333, -0.098, 0.0001, -0.0001, None)] == ["+33.3", "−9.8", "±0.0", "±0.0", "–"]
    assert [size(v) for v in (0, 900, 8123, 999_960, 4_000_000, 3.2e9, None)] == [
        "0 B", "900 B", "8.12 kB", "1 MB", "4 MB", "3.2 GB", "–"
    ]  # fmt: skip
    assert [seconds(v) for v in (0.0123, 0.9996, 3.2, 75, 3720, None)] == [
        "12 ms", "1 s", "3.2 s", "1 min 15 s", "1 h 2 min", "–"
    ]  # fmt: skip


def test_a_long_key_loses_its_middle_since_keys_differ_at_the_end():
    assert short("10293847561029384756", 9) == "1029…4756"
    assert short("short", 9) == "short"


def test_a_gap_says_which_side_and_nothing_is_level():
    assert [gap(d) for d in (0.333, -0.02, 0.0004, -0.0004)] == [
        "33.3 points above", "2.0 points below", "level with", "level with"
    ]  # fmt: skip


def test_plain_numbers_are_as_short_as_they_can_be():
    assert [number(v) for v in (0.12345, 12.0, None)] == ["0.123", "12", "–"]
    assert [whole(v) for v in (3.0, 2.7)] == ["3", "3"]


def test_a_value_from_json_is_told_in_words():
    assert [plain(v) for v in (None, "a b", 7, [1, "é"])] == ["not known", "a b", "7", '[1, "é"]']


def test_lines_break_between_settings_and_never_inside_a_value():
    assert pieces("loss=kl(temperature=1.0)", 16) == ["loss=kl(", "temperature=1.0)"]
    assert pieces("a=0.25, b=top_k(k=3)|delta", 12) == ["a=0.25,", "b=top_k(", "k=3)|delta"]
    assert pieces("temperature=1.0", 13) == ["temperature=", "1.0"]
    assert pieces("", 5) == [""]
    assert "".join(pieces("votes,release=argmax", 8)) == "votes,release=argmax"


def test_what_was_spent_is_never_written_smaller_than_it_is():
    spent = (2.9999, 3.0, 3.001, 0.012345, 71.21, 0.0, float("inf"))
    assert [ceiling(v) for v in spent] == ["3", "3", "3.01", "0.0124", "71.3", "0", "inf"]
