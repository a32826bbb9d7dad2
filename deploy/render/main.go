// SPDX-License-Identifier: Apache-2.0

// Command render writes what Helm makes of the charts to install.yaml and
// uninstall.yaml, for those who do not use Helm. It runs in the folder deploy,
// by "go generate", and writes nothing else.
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// namespace is where the files install to.
const namespace = "sidetrack-system"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}

func run() error {
	crds, err := template("sidetrack-crds")
	if err != nil {
		return err
	}
	install, err := template("sidetrack", "--set", "createNamespace=true")
	if err != nil {
		return err
	}
	uninstall, err := template("sidetrack", "--set", "agent.uninstall=true", "--show-only", "templates/uninstall.yaml")
	if err != nil {
		return err
	}
	if err := write("install.yaml", "Sidetrack, all of it: kubectl apply --server-side -f install.yaml", crds, install); err != nil {
		return err
	}
	return write("uninstall.yaml", "Before install.yaml is deleted: see docs/install.md.", uninstall)
}

// template returns what Helm makes of a chart.
func template(chart string, args ...string) (string, error) {
	args = append([]string{"tool", "-modfile=tools/go.mod", "helm", "template", chart, "charts/" + chart, "--namespace", namespace}, args...)
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("go", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// untrue are lines that hold for releases of Helm only.
var untrue = []string{"# Source: ", "helm.sh/chart: ", "app.kubernetes.io/managed-by: Helm", "# SPDX-License-Identifier: "}

func write(name, title string, parts ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# SPDX-License-Identifier: Apache-2.0\n#\n# %s\n# Generated from the charts by \"make generate\"; do not edit.\n", title)
	for line := range strings.Lines(strings.Join(parts, "")) {
		text := strings.TrimSpace(line)
		drop := false
		for _, prefix := range untrue {
			drop = drop || strings.HasPrefix(text, prefix)
		}
		if !drop {
			b.WriteString(strings.TrimRight(line, " \n") + "\n")
		}
	}
	if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write what is rendered: %w", err)
	}
	return nil
}
