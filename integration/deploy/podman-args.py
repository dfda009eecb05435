"""Prints what `podman run` takes to confine a container as the DaemonSet's agent is confined, one argument a line.

Only what is about confinement and the file system: the probes and the API server have tests of their own.
"""

import sys

import yaml


def main(path):
    with open(path, encoding="utf-8") as file:
        (daemonset,) = (o for o in yaml.safe_load_all(file) if o["kind"] == "DaemonSet")
    pod = daemonset["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert not pod.get("hostPID") and not pod.get("hostIPC") and not context["privileged"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}  # podman's default profile is the same list
    assert not context["allowPrivilegeEscalation"] and context["readOnlyRootFilesystem"]
    args = ["--network=host"] if pod["hostNetwork"] else []
    args += ["--read-only", "--read-only-tmpfs=false", "--security-opt=no-new-privileges"]
    args += [f"--user={context['runAsUser']}"]
    args += [f"--cap-drop={name}" for name in context["capabilities"]["drop"]]
    args += [f"--cap-add={name}" for name in context["capabilities"]["add"]]
    args += [f"--env={entry['name']}={entry['value']}" for entry in container["env"] if "value" in entry]
    host_paths = {v["name"]: v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
    for mount in container["volumeMounts"]:
        if mount["name"] in host_paths:
            mode = "ro" if mount.get("readOnly") else "rw"
            args.append(f"--volume={host_paths[mount['name']]}:{mount['mountPath']}:{mode}")
    args.append(container["image"])
    print("\n".join(args))


main(sys.argv[1])
