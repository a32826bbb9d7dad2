// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// shop is a cluster with these Deployments, of which each has these containers.
func shop(t *testing.T, deployments map[string][]string) *cluster.Cluster {
	t.Helper()
	scheme, err := cluster.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	b := fake.NewClientBuilder().WithScheme(scheme)
	for name, containers := range deployments {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		for _, c := range containers {
			if init, ok := strings.CutPrefix(c, "init:"); ok {
				d.Spec.Template.Spec.InitContainers = append(d.Spec.Template.Spec.InitContainers, corev1.Container{Name: init})
			} else {
				d.Spec.Template.Spec.Containers = append(d.Spec.Template.Spec.Containers, corev1.Container{Name: c})
			}
		}
		b.WithObjects(d)
	}
	return &cluster.Cluster{Objects: b.Build(), Namespace: "shop"}
}

func TestWhichContainerIsMeant(t *testing.T) {
	c := shop(t, map[string][]string{"route": {"app", "proxy", "init:migrate"}, "stock": {"server"}, "mail": {"app"}})
	for _, tc := range []struct {
		name       string
		forks      []string
		images     []string
		env        []string
		want, says string // in words, or the error
	}{
		{"the only one", []string{"stock"}, []string{"stock:2"}, []string{"A=b"}, "stock/server=stock:2 A=b", ""},
		{"by its workload", []string{"stock", "mail"}, []string{"stock=stock:2", "mail=mail:2"}, nil, "stock/server=stock:2 mail/app=mail:2", ""},
		{"by its name", []string{"route"}, []string{"app=route:2"}, nil, "route/app=route:2", ""},
		{"env of the one with an image", []string{"route"}, []string{"app=route:2"}, []string{"A=b=c", "B-"}, "route/app=route:2 A=b=c -B", ""},
		{"an init container", []string{"route"}, []string{"migrate=route:2"}, nil, "route/migrate=route:2", ""},
		{"by both names", []string{"route", "mail"}, []string{"mail/app=mail:2", "deploy/route/app=route:2"}, nil, "route/app=route:2 mail/app=mail:2", ""},
		{"a digest", []string{"stock"}, []string{"r:5000/stock@sha256:ab"}, nil, "stock/server=r:5000/stock@sha256:ab", ""},
		{"one of two", []string{"route"}, []string{"route:2"}, nil, "", `image "route:2" may mean several containers: write CONTAINER=IMAGE, or WORKLOAD/CONTAINER=IMAGE; there are route/app, route/proxy, route/migrate`},
		{"the same name twice", []string{"route", "mail"}, []string{"app=a:2"}, nil, "", `image "app=a:2" may mean several`},
		{"none", []string{"stock"}, []string{"app=a:2"}, nil, "", "no forked workload has such a container: there are stock/server"},
		{"two images", []string{"stock"}, []string{"a:1", "server=a:2"}, nil, "", "container server of Deployment/stock gets two images: a:1 and a:2"},
		{"no image", []string{"stock"}, []string{"server="}, nil, "", "names no image"},
		{"no value", []string{"stock"}, []string{"a:1"}, []string{"A"}, "", `env "A" is neither NAME=VALUE nor NAME- to remove one`},
		{"no fork", nil, []string{"a:1"}, nil, "", "nothing is forked: add --fork WORKLOAD"},
		{"a kind that cannot be forked", []string{"pod/a"}, nil, nil, "", `"pod" cannot be forked: use deploy, sts, ds, rs or cronjob`},
		{"no name", []string{"deploy/"}, nil, nil, "", "does not name a workload"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sb, err := Request{Name: "pr-42", Forks: tc.forks, Images: tc.images, Env: tc.env}.Build(t.Context(), c)
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) || task.KindOf(err) != task.Usage {
					t.Fatalf("error %v, want %q", err, tc.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range sb.Spec.Forks {
				for _, o := range f.Containers {
					s := f.Workload.Name + "/" + o.Name + "=" + o.Image
					for _, e := range o.Env {
						s += " " + e.Name + "=" + e.Value
					}
					for _, e := range o.RemoveEnv {
						s += " -" + e
					}
					got = append(got, s)
				}
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("it is %q, want %q", s, tc.want)
			}
		})
	}
}

func TestRedirectsAreReadAsTheyAreWritten(t *testing.T) {
	port := func(v any) *intstr.IntOrString {
		if n, ok := v.(int); ok {
			p := intstr.FromInt32(int32(n))
			return &p
		}
		p := intstr.FromString(v.(string))
		return &p
	}
	for text, want := range map[string]v1alpha1.Redirect{
		"a=b":                {From: v1alpha1.RedirectFrom{Service: "a"}, To: v1alpha1.RedirectTo{Service: "b"}},
		"a:5432=b:http":      {From: v1alpha1.RedirectFrom{Service: "a", Port: port(5432)}, To: v1alpha1.RedirectTo{Service: "b", Port: port("http")}},
		"a=stubs/b:1":        {From: v1alpha1.RedirectFrom{Service: "a"}, To: v1alpha1.RedirectTo{Namespace: "stubs", Service: "b", Port: port(1)}},
		"a=10.0.0.9":         {From: v1alpha1.RedirectFrom{Service: "a"}, To: v1alpha1.RedirectTo{Address: "10.0.0.9"}},
		"a=10.0.0.9:25":      {From: v1alpha1.RedirectFrom{Service: "a"}, To: v1alpha1.RedirectTo{Address: "10.0.0.9", Port: port(25)}},
		"a=fd00::9":          {From: v1alpha1.RedirectFrom{Service: "a"}, To: v1alpha1.RedirectTo{Address: "fd00::9"}},
		"a:smtp=[fd00::9]:5": {From: v1alpha1.RedirectFrom{Service: "a", Port: port("smtp")}, To: v1alpha1.RedirectTo{Address: "fd00::9", Port: port(5)}},
	} {
		got, err := parseRedirect(text)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%s: %v (-want +got):\n%s", text, err, d)
		}
	}
	for _, text := range []string{"", "a", "a=", "=b"} {
		if _, err := parseRedirect(text); task.KindOf(err) != task.Usage || err == nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestWhyAContainerIsNotReadyIsSaidInItsOwnWords(t *testing.T) {
	waiting := func(reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	ended := func(code, signal int32, reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Signal: signal, Reason: reason, Message: message}}
	}
	for _, c := range []struct {
		status corev1.ContainerStatus
		want   string
		ran    bool
	}{
		{corev1.ContainerStatus{Ready: true, LastTerminationState: ended(1, 0, "Error", "")}, "", false},
		{corev1.ContainerStatus{State: waiting("ContainerCreating", "")}, "", false},
		{corev1.ContainerStatus{State: waiting("ImagePullBackOff", "no such image")}, "ImagePullBackOff: no such image", false},
		{corev1.ContainerStatus{State: waiting("ErrImagePull", "ErrImagePull: gone")}, "ErrImagePull: gone", false},
		{corev1.ContainerStatus{State: waiting("CrashLoopBackOff", ""), LastTerminationState: ended(2, 0, "Error", "panic: oh\n")}, "CrashLoopBackOff; it has ended with exit code 2: panic: oh", true},
		{corev1.ContainerStatus{State: ended(137, 0, "OOMKilled", "")}, "it has ended with exit code 137 (OOMKilled)", true},
		{corev1.ContainerStatus{State: ended(0, 9, "Error", "")}, "it has been killed by signal 9", true},
		{corev1.ContainerStatus{State: ended(0, 0, "Completed", "")}, "", false},
		{corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}, "it runs and is not ready: see its readiness probe", true},
	} {
		if got, ran := Trouble(&c.status); got != c.want || ran != c.ran {
			t.Errorf("%+v: %q %t, want %q %t", c.status, got, ran, c.want, c.ran)
		}
	}
}
