"""A cluster's diagram: every fact of the live state is in the drawing, and in the words beside it."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import pytest

from k8snet import Cluster
from k8snet.errors import InvalidInput, NotFound
from k8snet.linux import nsfs

SVG = "{http://www.w3.org/2000/svg}"
NEW = "--k8s-new"


@pytest.fixture
def make():
    """Make clusters, closed when the test ends."""
    made = []

    def build(nodes=2, pods=0, **options):
        made.append(Cluster(nodes=nodes, name="test", wiring="direct", **options))
        for number in range(1, pods + 1):
            made[-1].run_pod(f"web-{number}", image="agnhost")
        return made[-1]

    yield build
    for one in made:
        one.close()
    assert nsfs.names() == []


def words(element):
    """Return the rows of text in a part of the drawing."""
    return [" ".join(row.itertext()).replace("\xa0", "").strip() for row in element.iter(f"{SVG}text")]


def root(diagram):
    return ET.fromstring(diagram.svg)


def nodes(diagram):
    return {group.get("data-netns"): group for group in root(diagram).iter(f"{SVG}g") if group.get("class") == "node"}


def pods(element):
    return {group.get("data-pod"): group for group in element.iter(f"{SVG}g") if group.get("class") == "pod"}


def tunnels(diagram):
    groups = [group for group in root(diagram).iter(f"{SVG}g") if group.get("class") == "overlay"]
    return {frozenset(one.partition("/")[0] for one in group.get("data-ends").split()): group for group in groups}


def sides(box):
    """Return left, top, right and bottom."""
    x, y, width, height = (float(box.get(name)) for name in ("x", "y", "width", "height"))
    return x, y, round(x + width, 1), round(y + height, 1)


def frame(group):
    return sides(group.find(f"{SVG}rect"))


def within(outer, inner):
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def apart(one, other):
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def boxes_in(group):
    """Return the sides of each box in a node; the inner line of a double box is none."""
    found = [sides(box) for box in group.findall(f"{SVG}rect")[1:]]
    bridges = {(x + 2.5, y + 2.5) for x, y, *_ in found}
    return [box for box in found if box[:2] not in bridges] + [frame(pod) for pod in pods(group).values()]


def veth_of(cluster, pod):
    state = cluster.snapshot()[pod.node.netns.name]
    return next(one.name for one in state.interfaces if one.peer and one.peer.netns == pod.netns.name)


def way(cluster, source, target):
    """Return the interfaces that a packet passes between pods of two nodes of a cluster with VXLAN."""
    here, there = source.node.name, target.node.name
    return [
        f"{source.netns.name}/eth0", f"{here}/{veth_of(cluster, source)}", f"{here}/cni0", f"{here}/flannel.1",
        f"{here}/eth0", f"switch/{here}", "switch/br0", f"switch/{there}", f"{there}/eth0", f"{there}/flannel.1",
        f"{there}/cni0", f"{there}/{veth_of(cluster, target)}", f"{target.netns.name}/eth0",
    ]  # fmt: skip


@pytest.mark.parametrize("direction", ["TB", "LR"])
def test_each_node_is_a_frame_around_its_own_pods(make, direction):
    cluster = make(nodes=3, pods=12)
    found = nodes(cluster.diagram(direction=direction))
    assert list(found) == ["node1", "node2", "node3"]
    for name, group in found.items():
        shown = pods(group)
        assert set(shown) == {pod.name for pod in cluster.node(name).pods.values()}
        for pod, box in shown.items():
            assert within(frame(group), frame(box))
            assert words(box) == [pod, cluster.pod(pod).address, f"{pod}: agnhost"]


@pytest.mark.parametrize("direction", ["TB", "LR"])
@pytest.mark.parametrize("network", ["routes", "vxlan"])
def test_no_box_covers_another(make, network, direction):
    """Pods, interfaces and notes of a node, and the frames themselves, have each a place of their own."""
    cluster = make(nodes=3, pods=7, pod_network=network, ip_families=("v4", "v6"))
    cluster.run_pod("agent", image="agnhost", host_network=True)
    found = nodes(cluster.diagram(direction=direction, routes=True, rules=True))
    for group in found.values():
        assert all(within(frame(group), box) for box in boxes_in(group))
        assert all(apart(one, other) for one, other in itertools.combinations(boxes_in(group), 2))
    extra = 2 if network == "vxlan" else 0
    assert len(boxes_in(found["node1"])) == len(cluster.node("node1").pods) + 4 + extra  # cni0, eth0, two notes
    assert all(apart(frame(one), frame(other)) for one, other in itertools.combinations(found.values(), 2))


def test_the_alternative_text_names_every_address(make):
    cluster = make(nodes=2, pods=3, pod_network="vxlan")
    alt = cluster.diagram().alt
    assert "2 nodes, 3 pods, pod network vxlan" in alt
    for node in cluster.nodes.values():
        assert f"{node.name} has eth0 {node.address}/16" in alt
        assert f"the pod CIDR {node.pod_cidr}" in alt
        assert all(f"{pod.name} {pod.address} ({pod.name}: agnhost)" in alt for pod in node.pods.values())
    assert "Underlay: switch is joined to router, node1, node2." in alt
    assert "Overlay (dashed): VXLAN 1 node1/flannel.1 and node2/flannel.1." in alt


def test_the_overlay_is_dashed_between_the_nodes_that_know_of_each_other(make):
    cluster = make(nodes=3, pod_network="vxlan")
    found = tunnels(cluster.diagram())
    assert set(found) == {frozenset(pair) for pair in itertools.combinations(cluster.nodes, 2)}
    assert all(group.find(f"{SVG}path").get("stroke-dasharray") for group in found.values())
    assert sum("VXLAN 1" in row for row in words(root(cluster.diagram()))) == 1


def test_a_tunnel_that_one_end_has_lost_gets_an_arrow(make):
    cluster = make(nodes=2, pod_network="vxlan")
    assert tunnels(cluster.diagram())[frozenset({"node1", "node2"})].find(f"{SVG}polygon") is None
    entry = next(one for one in cluster.snapshot()["node1"].fdb if one.remote == cluster.node("node2").address)
    cluster.node("node1").netns.delete_fdb(entry.mac, interface="flannel.1", remote=entry.remote)
    drawing = cluster.diagram()
    assert tunnels(drawing)[frozenset({"node1", "node2"})].find(f"{SVG}polygon") is not None
    assert "from node2/flannel.1 to node1/flannel.1 only" in drawing.alt


@pytest.mark.parametrize("network", ["routes", "bgp"])
def test_without_vxlan_there_is_no_overlay(make, network):
    drawing = make(nodes=2, pod_network=network).diagram()
    assert tunnels(drawing) == {}
    assert "Overlay" not in drawing.alt


def test_each_node_has_one_cable_to_the_switch(make):
    """Solid, from the node's edge, whatever pods share the node's eth0."""
    cluster = make(nodes=3)
    cluster.run_pod("agent", image="agnhost", host_network=True)
    drawing = cluster.diagram()
    cables = [path for path in root(drawing).iter(f"{SVG}path") if "--k8s-accent" in path.get("style", "")]
    assert len(cables) == 5  # three nodes and the router to the switch, and the router to the internet
    assert not any(path.get("stroke-dasharray") for path in cables)
    starts = [tuple(map(float, path.get("d")[1:].split()[0].split(","))) for path in cables]
    for left, _, right, bottom in map(frame, nodes(drawing).values()):
        assert len([x for x, y in starts if left < x < right and y == bottom]) == 1


def test_the_cable_of_a_node_without_power_is_dashed(make):
    cluster = make(nodes=2)

    def dashed() -> int:
        lines = root(cluster.diagram()).iter(f"{SVG}path")
        return sum("--k8s-line" in one.get("style", "") and one.get("stroke-dasharray") == "4 3" for one in lines)

    before = dashed()
    cluster.power_off("node1")
    assert dashed() == before + 1


def test_what_is_new_is_marked_and_what_is_gone_is_named(make):
    cluster = make(nodes=2, pods=2)
    before = cluster.snapshot()
    cluster.run_pod("fresh", image="agnhost")
    cluster.delete("pod", "web-1")
    drawing = cluster.diagram(since=before)
    shown = pods(root(drawing))
    assert "fresh + new" in words(shown["fresh"])
    assert NEW in shown["fresh"].find(f"{SVG}rect").get("style")
    assert NEW not in shown["web-2"].find(f"{SVG}rect").get("style")
    assert "− gone: web-1" in words(root(drawing))
    assert "Changed since the last one:" in drawing.alt
    assert "fresh" in drawing.alt.partition("Changed since")[2]


def test_a_new_node_is_marked_with_its_tunnels(make):
    cluster = make(nodes=2, pod_network="vxlan")
    before = cluster.snapshot()
    cluster.add_node("node3")
    drawing = cluster.diagram(since=before)
    assert "node node3 + new" in words(nodes(drawing)["node3"])
    fresh = {ends for ends, group in tunnels(drawing).items() if NEW in group.find(f"{SVG}path").get("style", "")}
    assert fresh == {frozenset({"node1", "node3"}), frozenset({"node2", "node3"})}


def test_nothing_is_marked_where_nothing_changed(make):
    cluster = make(nodes=2, pods=2, pod_network="vxlan")
    drawing = cluster.diagram(since=cluster.snapshot(), routes=True)
    assert NEW not in drawing.svg
    assert drawing.alt.endswith("Changed since the last one: nothing.")


@pytest.mark.parametrize("direction", ["TB", "LR"])
def test_a_path_is_numbered_at_every_interface(make, direction):
    cluster = make(nodes=2, pods=2, pod_network="vxlan")
    path = way(cluster, cluster.pod("web-1"), cluster.pod("web-2"))
    drawing = cluster.diagram(path=path, direction=direction)
    rows = words(root(drawing))
    for number in range(1, len(path) + 1):
        assert sum(f"({number})" in row for row in rows) == 1
    assert "web-1 (1)" in rows
    assert any("flannel.1" in row and "(4)" in row for row in rows)
    assert f"A packet passes {', then '.join(path)}." in drawing.alt
    assert NEW not in cluster.diagram(direction=direction).svg


def test_a_path_through_the_overlay_lights_up_its_tunnel_alone(make):
    cluster = make(nodes=3, pod_network="vxlan")
    drawing = cluster.diagram(path=["node1/flannel.1", "node3/flannel.1"])
    lit = {ends for ends, group in tunnels(drawing).items() if NEW in group.find(f"{SVG}path").get("style", "")}
    assert lit == {frozenset({"node1", "node3"})}


def test_a_pod_in_trouble_is_dashed_and_says_why(make):
    cluster = make(nodes=1, pods=3)
    cluster.pod("web-1").netns.set_down("eth0")
    cluster.pod("web-2").container("web-2").stop()
    drawing = cluster.diagram()
    shown = pods(root(drawing))
    dashed = {name for name, box in shown.items() if box.find(f"{SVG}rect").get("stroke-dasharray")}
    assert dashed == {"web-1", "web-2"}
    assert "○ eth0 down" in words(shown["web-1"])
    assert "○ not ready" in words(shown["web-2"])
    assert "web-2 10.244.1.3 (web-2: agnhost (Waiting)) not ready" in drawing.alt


def test_a_pod_on_the_host_network_has_the_address_of_its_node(make):
    cluster = make(nodes=1)
    cluster.run_pod("agent", image="agnhost", host_network=True)
    assert words(pods(root(cluster.diagram()))["agent"]) == ["agent", "172.18.0.1", "host network", "agent: agnhost"]


def test_a_pod_that_waits_for_a_node_is_in_no_node(make):
    cluster = make(nodes=1)
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: lost}\n"
        "spec: {nodeSelector: {disk: ssd}, containers: [{name: lost, image: agnhost}]}\n"
    )
    drawing = cluster.diagram()
    assert "lost" not in pods(nodes(drawing)["node1"])
    assert "○ Pending" in words(pods(root(drawing))["lost"])
    assert "Pods that wait for a node: lost (lost: agnhost) Pending." in drawing.alt
    assert "lost" not in cluster.diagram(only=["node1"]).alt


def test_two_containers_and_the_namespace_are_named(make):
    cluster = make(nodes=1)
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\n"
        "spec: {containers: [{name: web, image: 'registry.k8s.io/pause:3.9'}, {name: log, image: agnhost}]}\n"
    )
    assert words(pods(root(cluster.diagram()))["shop/web"]) == ["shop/ web", "10.244.1.2", "web: pause", "log: agnhost"]


def test_dual_stack_pods_show_both_addresses(make):
    cluster = make(nodes=2, pods=2, pod_network="vxlan", ip_families=("v4", "v6"))
    drawing = cluster.diagram()
    assert words(pods(root(drawing))["web-1"])[1:3] == ["10.244.1.2", "fd00:10:244:1::2"]
    assert "node1/flannel-v6.1 and node2/flannel-v6.1" in drawing.alt


def test_routes_stand_in_the_node_that_has_them(make):
    """What BIRD told the kernel is in the table, and never a line."""
    cluster = make(nodes=2, pod_network="bgp")
    rows = words(nodes(cluster.diagram(routes=True))["node1"])
    assert "routes" in rows
    assert any(row.startswith("10.244.2.0/24 via 172.18.0.2 dev eth0") for row in rows)
    assert "routes" not in words(root(cluster.diagram()))


def test_a_new_route_is_marked(make):
    cluster = make(nodes=1)
    before = cluster.snapshot()
    cluster.node("node1").netns.add_route("192.0.2.0/24", via="172.18.0.254")
    assert any(row.startswith("+ 192.0.2.0/24") for row in words(root(cluster.diagram(since=before, routes=True))))


def test_what_is_not_asked_for_is_not_drawn(make):
    cluster = make(nodes=3, pods=3, pod_network="vxlan")
    drawing = cluster.diagram(only=["node2"], fabric=False)
    assert list(nodes(drawing)) == ["node2"]
    assert set(pods(root(drawing))) == {"web-2"}
    assert tunnels(drawing) == {}
    assert not any("switch" in row or "router" in row for row in words(root(drawing)))
    bare = cluster.diagram(pods=False)
    assert pods(root(bare)) == {}
    assert not any("veth" in row for row in words(root(bare)))
    assert "3 nodes, 3 pods" in bare.alt


def test_a_netns_that_somebody_adds_is_shown_with_its_cable(make):
    cluster = make(nodes=1)
    from k8snet import End

    extra = cluster.lab.netns("extra")
    cluster.lab.veth(End(netns=extra, name="eth0", address="172.18.9.9/16"), End(netns=cluster.switch, name="extra"))
    drawing = cluster.diagram()
    assert "netns extra" in words(root(drawing))
    assert "Underlay: extra has 172.18.9.9/16 and is joined to switch." in drawing.alt


def test_a_cluster_without_pods_or_nodes_has_a_drawing_too(make):
    cluster = make(nodes=1)
    assert "1 node, 0 pods" in cluster.diagram().alt
    cluster.remove_node("node1")
    drawing = cluster.diagram()
    assert nodes(drawing) == {}
    assert "0 nodes, 0 pods" in drawing.alt


def test_nodes_stand_side_by_side_or_one_under_another(make):
    cluster = make(nodes=2)

    def corners(direction):
        return [frame(group)[:2] for group in nodes(cluster.diagram(direction=direction)).values()]

    (left, top), (left2, top2) = corners("TB")
    assert top == top2
    assert left < left2
    (left, top), (left2, top2) = corners("LR")
    assert left == left2
    assert top < top2


def test_without_a_direction_the_drawing_fits_a_page(make):
    """Ten nodes side by side would be scaled until nobody could read them."""
    few = make(nodes=3, pods=12).diagram()
    many = make(nodes=10, pods=30, pod_network="vxlan").diagram()
    for drawing in (few, many):
        assert float(root(drawing).get("viewBox").split()[2]) <= 850
    assert len(pods(root(many))) == 30


def test_what_is_not_there_cannot_be_drawn(make):
    cluster = make(nodes=1)
    with pytest.raises(NotFound, match="no node 'node7'; there are: node1"):
        cluster.diagram(only=["node7"])
    with pytest.raises(NotFound, match="no interface 'eth7' in netns node1"):
        cluster.diagram(path=["node1/eth7"])
    with pytest.raises(InvalidInput, match="'LR', 'TB' or None"):
        cluster.diagram(direction="up")


def test_the_drawing_is_plain_svg_in_the_colours_of_the_theme(make):
    """No id could clash with that of another figure, and no title of a vertex pops up."""
    drawing = make(nodes=2, pods=2, pod_network="vxlan").diagram(caption="A <caption>.", routes=True)
    every = list(root(drawing).iter())
    assert not any(element.get("id") for element in every)
    assert not any(element.tag.endswith("title") for element in every)
    assert "#0b00" not in drawing.svg
    page = drawing._repr_mimebundle_()["text/html"]
    assert "&lt;caption&gt;" in page
    assert 'role="img"' in page
