"""Evaluates the admission policy of deploy/components/own-node, as rendered, on what agents and others write to Nodes."""

import copy
import sys

import cel
import yaml

AGENT = "system:serviceaccount:sheave:sheave"
NODE = {
    "metadata": {
        "name": "node-a",
        "labels": {"kubernetes.io/hostname": "node-a"},
        "annotations": {"sheave.io/peers": "[]", "sheave.io/accepts": "ipip"},
    },
    "spec": {"podCIDR": "10.244.1.0/24", "taints": [{"key": "a", "effect": "NoSchedule"}]},
}
BARE = {"metadata": {"name": "node-a"}, "spec": {}}


def to(node, *path, value):
    """The Node with one value changed; None takes it away."""
    node = copy.deepcopy(node)
    inner = node
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    if value is None:
        inner.pop(path[-1])
    else:
        inner[path[-1]] = value
    return node


def annotated(node, key, value):
    return to(node, "metadata", "annotations", key, value=value)


def user(name=AGENT, node="node-a"):
    extra = {} if node is None else {"extra": {"authentication.kubernetes.io/node-name": [node]}}
    return {"username": name, **extra}


# Name, who, before, after, whether it is admitted.
CASES = [
    ("the first word", user(), BARE, annotated(BARE, "sheave.io/accepts", "ipip"), True),
    ("another word", user(), NODE, annotated(NODE, "sheave.io/accepts", "ipip,gue"), True),
    ("none any more", user(), NODE, annotated(NODE, "sheave.io/accepts", None), True),
    ("the last annotation goes", user(), annotated(BARE, "sheave.io/accepts", "ipip"), BARE, True),
    ("another node's agent", user(node="node-b"), NODE, annotated(NODE, "sheave.io/accepts", "gue"), False),
    ("a token of no node", user(node=None), NODE, annotated(NODE, "sheave.io/accepts", "gue"), False),
    ("its own peers", user(), NODE, annotated(NODE, "sheave.io/peers", "[{address: 192.0.2.1, asn: 1}]"), False),
    ("a drain", user(), NODE, annotated(NODE, "sheave.io/drain", "true"), False),
    ("an annotation taken away", user(), NODE, annotated(NODE, "sheave.io/peers", None), False),
    ("a label", user(), NODE, to(NODE, "metadata", "labels", "role", value="x"), False),
    ("the first label", user(), BARE, to(BARE, "metadata", "labels", "role", value="x"), False),
    ("a finalizer", user(), NODE, to(NODE, "metadata", "finalizers", value=["x"]), False),
    ("an owner", user(), NODE, to(NODE, "metadata", "ownerReferences", value=[{"name": "x"}]), False),
    ("no taint", user(), NODE, to(NODE, "spec", "taints", value=None), False),
    ("a cordon", user(), NODE, to(NODE, "spec", "unschedulable", value=True), False),
    ("somebody else", user("admin", None), NODE, to(NODE, "spec", "unschedulable", value=True), True),
    ("a kubelet", user("system:node:node-b"), NODE, to(NODE, "metadata", "labels", "role", value="x"), True),
]


def admitted(policy, who, before, after):
    context = {"request": {"userInfo": who}, "oldObject": before, "object": after}
    if not all(cel.evaluate(condition["expression"], context) for condition in policy["matchConditions"]):
        return True
    context["variables"] = {v["name"]: cel.evaluate(v["expression"], context) for v in policy["variables"]}
    return all(cel.evaluate(validation["expression"], context) for validation in policy["validations"])


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        objects = list(yaml.safe_load_all(file))
    (policy,) = [o["spec"] for o in objects if o["kind"] == "ValidatingAdmissionPolicy"]
    wrong = [name for name, who, before, after, right in CASES if admitted(policy, who, before, after) is not right]
    if wrong:
        sys.exit(f"otherwise than it should be: {', '.join(wrong)}")


main()
