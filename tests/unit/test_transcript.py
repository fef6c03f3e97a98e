"""The transcript: commands as a person on the lab's host would type them."""

from __future__ import annotations

import pytest

from k8snet.transcript import Entry, Transcript


@pytest.mark.parametrize(
    ("entry", "typed"),
    [
        (Entry("host", ("ip", "netns", "add", "a")), "ip netns add a"),
        (Entry("a", ("ip", "link", "set", "dev", "lo", "up")), "ip -n a link set dev lo up"),
        (Entry("a", ("bridge", "fdb", "append", "x")), "bridge -n a fdb append x"),
        (Entry("a", ("sysctl", "-qw", "net.ipv4.ip_forward=1")), "ip netns exec a sysctl -qw net.ipv4.ip_forward=1"),
        (
            Entry("a", ("iptables", "-m", "comment", "--comment", "two words")),
            "ip netns exec a iptables -m comment --comment 'two words'",
        ),
        (Entry("a", script="ip link set lo up"), "ip -n a link set lo up"),
        (Entry("a", script="ip -6 route add default dev e"), "ip netns exec a ip -6 route add default dev e"),
        (Entry("a", script="ip link | wc -l"), "ip netns exec a bash -eu <<'K8SNET'\nip link | wc -l\nK8SNET"),
        (Entry("host", script="for x in 1; do\n  :\ndone"), "for x in 1; do\n  :\ndone"),
        (
            Entry("a", ("nft", "-f", "-"), stdin="add table ip t\n"),
            "ip netns exec a nft -f - <<'END'\nadd table ip t\nEND",
        ),
    ],
)
def test_a_command_is_shown_as_it_would_be_typed(entry, typed):
    assert entry.shell() == typed


def test_a_transcript_can_be_cut_by_time_and_by_netns():
    transcript = Transcript("lab", [Entry("host", ("a",)), Entry("x", ("b",))])
    mark = len(transcript)
    transcript.entries.append(Entry("x", ("c",)))
    assert transcript.since(mark).commands() == ["ip netns exec x c"]
    assert len(transcript.of("x")) == 2


def test_the_page_shows_commands_and_never_obeys_them():
    transcript = Transcript("lab", [Entry("host", script="echo '<b>'")])
    assert "&lt;b&gt;" in transcript._repr_html_()
