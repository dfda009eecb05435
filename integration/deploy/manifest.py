"""What integration/deploy/container takes from deploy/sheave.yaml.

  manifest.py arguments NODE DIR    what `podman run` takes to confine a container as the DaemonSet's agent is confined,
                                    and then its image and arguments, one a line; ConfigMaps go to DIR
  manifest.py rights FILE           whether each line `verb resource …` of FILE is granted to the agent
"""

import pathlib
import sys

import yaml

MANIFEST = pathlib.Path("deploy/sheave.yaml")


def objects(kind):
    return [o for o in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")) if o["kind"] == kind]


def arguments(node, directory):
    (daemonset,) = objects("DaemonSet")
    pod = daemonset["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert not pod.get("hostPID") and not pod.get("hostIPC") and not context["privileged"]
    assert not context["allowPrivilegeEscalation"] and context["readOnlyRootFilesystem"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}  # podman's own default has the same purpose
    yield "--network=host" if pod["hostNetwork"] else "--network=none"
    yield from ["--read-only", "--read-only-tmpfs=false", "--security-opt=no-new-privileges"]
    yield f"--user={context['runAsUser']}"
    yield from (f"--cap-drop={name}" for name in context["capabilities"]["drop"])
    yield from (f"--cap-add={name}" for name in context["capabilities"]["add"])
    for entry in container["env"]:
        if entry.get("valueFrom") == {"fieldRef": {"fieldPath": "spec.nodeName"}}:
            entry["value"] = node
        yield f"--env={entry['name']}={entry['value']}"
    sources = {volume["name"]: source(volume, directory) for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        mode = "ro" if mount.get("readOnly") else "rw"
        yield f"--volume={sources[mount['name']]}:{mount['mountPath']}:{mode}"
    yield container["image"]
    yield from container["args"]


def source(volume, directory):
    """Where a volume is on the host."""
    if "hostPath" in volume:
        return volume["hostPath"]["path"]
    name = volume["configMap"]["name"]
    (data,) = (o["data"] for o in objects("ConfigMap") if o["metadata"]["name"] == name)
    files = pathlib.Path(directory) / name
    files.mkdir(parents=True, exist_ok=True)
    for key, text in data.items():
        (files / key).write_text(text, encoding="utf-8")
    return files


def rights(path):
    granted = {
        (verb, resource)
        for role in objects("ClusterRole") + objects("Role")
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }
    lines = [line.split() for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines()]
    asked = {(verb, resource) for verb, resource, *_ in lines}
    print("asked for: " + ", ".join(sorted(f"{verb} {resource}" for verb, resource in asked)))
    if not asked or asked - granted:
        sys.exit(f"not granted: {sorted(asked - granted)}")


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "arguments":
        print("\n".join(map(str, arguments(*rest))))
    else:
        rights(*rest)
