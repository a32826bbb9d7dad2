// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
)

// helm is the program of deploy/tools, which is built the first time.
var helm = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "tool", "-modfile=tools/go.mod", "-n", "helm").Output()
	return strings.TrimSpace(string(out)), err
})

func runHelm(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	program, err := helm()
	if err != nil {
		t.Fatalf("build helm: %v", err)
	}
	cmd := exec.Command(program, args...)
	// Its folders are not those of whoever runs the tests.
	cmd.Env = append(os.Environ(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	var out, errs bytes.Buffer
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// render returns what Helm makes of the chart with these values.
func render(t *testing.T, values string) (stdout, stderr string, err error) {
	t.Helper()
	return runHelm(t, values, "template", "sidetrack", "charts/sidetrack", "--namespace", "elsewhere", "--values", "-")
}

func TestTheChartsAreWellFormed(t *testing.T) {
	if out, stderr, err := runHelm(t, "", "lint", "--strict", "charts/sidetrack", "charts/sidetrack-crds"); err != nil {
		t.Errorf("%v\n%s%s", err, out, stderr)
	}
}

func TestEveryWayToRenderIsStrictlyWhatKubernetesKnows(t *testing.T) {
	everything := `
createNamespace: true
images: {registry: "localhost:5000/x", tag: v9, pullPolicy: Always, pullSecrets: [{name: one}, {name: two}]}
routing: {baggageMembers: [a, b], keyHeader: X-Key}
agent:
  digest: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
  podsCgroup: /sys/fs/cgroup/kubepods
  flowEnds: false
  metrics: {port: 1234, listen: NodeIP}
  nodeSelector: {pool: apps}
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}
  podAnnotations: {a: b}
  podLabels: {c: d}
  appArmorProfile: {type: Localhost, localhostProfile: sidetrack}
  maxSurge: 25%
  extraArgs: [--max-flow-routes=2000000]
controller:
  digest: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
  nodeSelector: {pool: system}
  affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, podAffinityTerm: {topologyKey: zone}}]}}
  tolerations: [{key: a, operator: Equal, value: b, effect: NoSchedule}]
  podAnnotations: {a: b}
  podLabels: {c: d}
  extraArgs: [--x]
monitoring: {labels: {release: prom}, podMonitor: true, serviceMonitor: true, prometheusRule: true}
`
	for name, values := range map[string]string{
		"everything set": everything,
		"as little as there can be": `
agent: {priorityClassName: "", appArmorProfile: null, seLinuxOptions: null, tolerations: [], resources: {}}
controller: {priorityClassName: "", replicas: 1, resources: {}}
aggregateRoles: false
guardAddresses: false`,
		"uninstall": "agent: {uninstall: true}",
	} {
		t.Run(name, func(t *testing.T) {
			out, stderr, err := render(t, values)
			if err != nil {
				t.Fatal(err, stderr)
			}
			objects := decode(t, []byte(out))
			one[appsv1.DaemonSet](t, objects)
			if strings.Contains(out, "<no value>") || strings.Contains(out, "<nil>") {
				t.Errorf("something has no value:\n%s", out)
			}
			if strings.Contains(out, "sidetrack-system") {
				t.Error("another namespace than the release's is in it")
			}
			if name != "everything set" {
				return
			}
			for _, want := range []string{"localhost:5000/x/sidetrackd@sha256:", "kind: PodMonitor", "kind: ServiceMonitor", "kind: PrometheusRule", "--metrics-address=[$(HOST_IP)]:1234",
				"maxSurge: 25%", "--baggage-member=a,b", "--key-header=X-Key", "--pods-cgroup=/sys/fs/cgroup/kubepods", "--flow-ends=false", "- \"--max-flow-routes=2000000\"", "release: prom", "--node-selector=kubernetes.io/os=linux,pool=apps"} {
				if !strings.Contains(out, want) {
					t.Errorf("it lacks %q", want)
				}
			}
		})
	}
}

func TestMonitoringIsOffUnlessAskedFor(t *testing.T) {
	out, stderr, err := render(t, "{}")
	if err != nil {
		t.Fatal(err, stderr)
	}
	if strings.Contains(out, "monitoring.coreos.com") {
		t.Error("a cluster without the Prometheus operator refuses it")
	}
}

func TestWrongValuesAreRefused(t *testing.T) {
	for values, want := range map[string]string{
		"agents: {}":                                      "agents",
		"agent: {metricz: {}}":                            "metricz",
		"agent: {privileged: true}":                       "privileged",
		"agent: {digest: latest}":                         "/agent/digest",
		"agent: {logLevel: loud}":                         "/agent/logLevel",
		"agent: {maxSurge: 0}":                            "/agent/maxSurge",
		"agent: {maxSurge: \"0%\"}":                       "/agent/maxSurge",
		"agent: {drainTimeout: 2m}":                       "/agent/drainTimeout",
		"agent: {lease: 5}":                               "/agent/lease",
		"agent: {metrics: {listen: \"0.0.0.0\"}}":         "/agent/metrics/listen",
		"agent: {metrics: {port: 99999}}":                 "/agent/metrics/port",
		"agent: {extraArgs: --x}":                         "/agent/extraArgs",
		"agent: {extraArgs: [x]}":                         "/agent/extraArgs/0",
		"agent: {resources: {limits: {memory: lots}}}":    "/agent/resources/limits/memory",
		"agent: {priorityClassName: High!}":               "/agent/priorityClassName",
		"agent: {podLabels: {app.kubernetes.io/name: x}}": "app.kubernetes.io/name",
		"agent: {tolerations: [{effect: Never}]}":         "/agent/tolerations/0/effect",
		"controller: {replicas: two}":                     "/controller/replicas",
		"controller: {replicas: -1}":                      "/controller/replicas",
		"images: {pullPolicy: Sometimes}":                 "/images/pullPolicy",
		"images: {registry: https://example.com/}":        "/images/registry",
		"images: {pullSecrets: [one]}":                    "/images/pullSecrets/0",
		"routing: {baggageMembers: []}":                   "/routing/baggageMembers",
		"routing: {baggageMembers: [Acme]}":               "/routing/baggageMembers/0",
		"routing: {keyHeader: \"a b\"}":                   "/routing/keyHeader",
		"monitoring: {podMonitor: \"yes\"}":               "/monitoring/podMonitor",
		"monitoring: {podMonitor: true}":                  "agent.metrics.listen: NodeIP",
		"createNamespace: 1":                              "/createNamespace",
	} {
		t.Run(values, func(t *testing.T) {
			_, stderr, err := render(t, values)
			if err == nil {
				t.Fatal("it is taken")
			}
			if !strings.Contains(stderr, want) && !strings.Contains(stderr, strings.ReplaceAll(strings.TrimPrefix(want, "/"), "/", ".")) {
				t.Errorf("the message does not name %q:\n%s", want, stderr)
			}
		})
	}
}

// TestEveryValueIsUsed finds settings that set nothing.
func TestEveryValueIsUsed(t *testing.T) {
	var templates strings.Builder
	files, err := filepath.Glob("charts/sidetrack/templates/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		templates.Write(read(t, f))
	}
	key := regexp.MustCompile(`(?m)^ {0,2}([a-zA-Z]+):`)
	for _, m := range key.FindAllStringSubmatch(string(read(t, "charts/sidetrack/values.yaml")), -1) {
		if !strings.Contains(templates.String(), "."+m[1]) {
			t.Errorf("%s is in values.yaml and in no template", m[1])
		}
	}
}

// TestAlertsAndDashboardsAreAboutMetricsThatThereAre keeps them in step with the
// code.
func TestAlertsAndDashboardsAreAboutMetricsThatThereAre(t *testing.T) {
	var code strings.Builder
	files, err := filepath.Glob("../daemon/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f, "_test.go") {
			code.Write(read(t, f))
		}
	}
	for _, file := range []string{"charts/sidetrack/alerts.yaml", "dashboards/sidetrack.json"} {
		names := regexp.MustCompile(`sidetrack_[a-z_]+`).FindAllString(string(read(t, file)), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric", file)
		}
		for _, name := range names {
			if !strings.Contains(code.String(), `"`+strings.TrimSuffix(name, "_bucket")+`"`) {
				t.Errorf("%s: nothing exports %s", file, name)
			}
		}
	}
	if !json.Valid(read(t, "dashboards/sidetrack.json")) {
		t.Error("the dashboard is no JSON")
	}
}
