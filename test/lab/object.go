// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"strings"
)

// Object is a Pod that the namespace stands for, in Kubernetes' namespace shop, as the
// agent reads it from a folder of manifests. Labels are "name: value".
func (p *Pod) Object(labels ...string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: shop
  labels: {%s}
  annotations: {sidetrack.dev/netns: %s}
spec:
  containers: [{name: main, image: unused}]
status: {podIP: %q, podIPs: [{ip: %q}, {ip: %q}]}
`, p.Name, strings.Join(labels, ", "), p.Netns, p.IPv4, p.IPv4, p.IPv6)
}
