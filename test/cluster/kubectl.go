// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
)

// Kubectl runs kubectl as the administrator and returns its standard output.
func (c *ControlPlane) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.KubectlInput(ctx, nil, args...)
}

// KubectlInput is Kubectl with something on its standard input.
func (c *ControlPlane) KubectlInput(ctx context.Context, in io.Reader, args ...string) (string, error) {
	cmd, err := c.KubectlCommand(ctx, args...)
	if err != nil {
		return "", err
	}
	cmd.Stdin = in
	out, err := output(ctx, cmd)
	return string(out), err
}

// KubectlCommand returns kubectl as a command that has not been started.
func (c *ControlPlane) KubectlCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	file, err := c.Kubeconfig()
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, filepath.Join(c.programs, "kubectl"), append([]string{"--kubeconfig=" + file}, args...)...), nil
}

// ApplyYAML applies objects, given as YAML documents, as a user does.
func (c *ControlPlane) ApplyYAML(ctx context.Context, yaml string) error {
	if _, err := c.KubectlInput(ctx, strings.NewReader(yaml), "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		return fmt.Errorf("apply objects: %w", err)
	}
	return nil
}

// Apply applies the objects in files and folders. When there are CRDs among
// them it waits until the API server serves them.
func (c *ControlPlane) Apply(ctx context.Context, paths ...string) error {
	args := []string{"apply", "--server-side", "--force-conflicts"}
	for _, p := range paths {
		args = append(args, "-f", p)
	}
	out, err := c.Kubectl(ctx, append(args, "-o", "name")...)
	if err != nil {
		return fmt.Errorf("apply objects: %w", err)
	}
	wait := []string{"wait", "--for=condition=Established", "--timeout=60s"}
	for name := range strings.Lines(out) {
		if strings.HasPrefix(name, "customresourcedefinition.") {
			wait = append(wait, strings.TrimSpace(name))
		}
	}
	if len(wait) == 3 {
		return nil
	}
	if _, err := c.Kubectl(ctx, wait...); err != nil {
		return fmt.Errorf("wait for CRDs: %w", err)
	}
	return nil
}

// LeadHere has the API server find what a Service and an APIService stand for at a port of
// this machine: there is nobody who would lead it to a pod.
func (c *ControlPlane) LeadHere(ctx context.Context, apiService, namespace, service string, port int) error {
	if _, err := c.Kubectl(ctx, "delete", "service", service, "--namespace="+namespace); err != nil {
		return fmt.Errorf("replace Service %s/%s: %w", namespace, service, err)
	}
	if err := c.ApplyYAML(ctx, fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: %s}, spec: {type: ExternalName, externalName: localhost}}", service, namespace)); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "patch", "apiservice", apiService, "--type=merge", "-p", fmt.Sprintf(`{"spec":{"service":{"port":%d}}}`, port)); err != nil {
		return fmt.Errorf("lead APIService %s to port %d: %w", apiService, port, err)
	}
	return nil
}
