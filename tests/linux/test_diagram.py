"""Diagrams and plots: drawn from the live state, and told in words."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from k8snet import plot
from k8snet.errors import InvalidInput

SVG = "{http://www.w3.org/2000/svg}"


def texts(diagram):
    return [
        node.text.replace("\xa0", "").strip() for node in ET.fromstring(diagram.svg).iter(f"{SVG}text") if node.text
    ]


def test_every_interface_shows_name_address_mac_and_state(pair, lab):
    found = texts(lab.diagram())
    state = lab.snapshot()["client"].interface("veth-client")
    for expected in ("client", "veth-client", "10.0.0.11/24", state.mac, "● up"):
        assert expected in found


def test_what_changed_is_marked(pair, lab):
    client, _ = pair
    before = lab.snapshot()
    client.add_bridge("br0")
    client.set_down("veth-client")
    found = texts(lab.diagram(since=before))
    assert "+ new" in found
    assert found.count("± changed") == 2  # the other end has lost its carrier
    assert "○ down" in found
    assert "○ no carrier" in found


def test_the_description_says_what_the_drawing_shows(pair, lab):
    client, _ = pair
    client.listen(80)
    client.iptables("-A INPUT -p icmp -j DROP")
    alt = lab.diagram(routes=True, rules=True, sockets=True).alt
    assert "client has the veth veth-client with 10.0.0.11/24 (up) joined to veth-server in server" in alt
    assert "Its routes: 10.0.0.0/24 dev veth-client src 10.0.0.11" in alt
    assert "Its rules: *filter; -A INPUT -p icmp -j DROP. Its sockets: tcp 0.0.0.0:80." in alt


def test_a_path_is_numbered(pair, lab):
    found = texts(lab.diagram(path=["client/veth-client", "server/veth-server"]))
    assert {"(1)", "(2)"} <= set(found)


def test_the_figure_stands_by_itself_in_light_and_dark(pair, lab):
    page = lab.diagram(caption="A <caption>.")._repr_mimebundle_()["text/html"]
    assert "&lt;caption&gt;" in page
    assert 'role="img"' in page
    assert 'html[data-theme="dark"]' in page
    assert "#0b00" not in page  # every colour that dot was told has become one of the theme
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_rule_with_signs_of_html_is_drawn_as_text(pair, lab):
    _, server = pair
    server.iptables("-A INPUT -m comment --comment '<b>&</b>' -j ACCEPT")
    assert any("<b>&</b>" in text for text in texts(lab.diagram(rules=True)))


def test_an_empty_lab_has_a_drawing_too(lab):
    assert "no netns" in lab.diagram().alt
    lab.netns("a")
    assert "lo, and nothing else" in texts(lab.diagram())


@pytest.mark.parametrize("bars", [False, True])
def test_a_plot_shows_its_numbers_in_words_too(bars):
    drawn = plot({"veth": [(1, 2), (2, 4)]}, x="n", y="time (ms)", caption="It grows.", bars=bars)
    assert "veth: 1 → 2, 2 → 4." in drawn.alt
    assert "time (ms)" in texts(drawn)


def test_a_plot_of_nothing_is_refused():
    with pytest.raises(InvalidInput, match="none of them empty"):
        plot({"a": []}, x="x", y="y", caption="c.")
