// SPDX-License-Identifier: Apache-2.0

// Package e2e installs Sidetrack in a real Kubernetes with two nodes and shows
// what a user would see: its tests are one story, told in order, because each
// chapter needs the installation and most of them the shop. It starts a cluster,
// owns it, and takes it away.
//
// It runs only where SIDETRACK_E2E is set, as "make e2e" does: it needs root, a
// gigabyte of memory and the machine's one cluster. With SIDETRACK_E2E_KEEP it
// uses the cluster that runs already, or leaves its own for the next time.
// kube-proxy works with nftables on the first node and with iptables on the
// second; SIDETRACK_E2E_PROXY (nftables, iptables) has one of them on both.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
	"github.com/sidetrack-dev/sidetrack/test/images"
)

// The cluster, and an administrator's client of it.
var (
	kube   *cluster.Cluster
	client ctrlclient.WithWatch
)

// root is the checkout, seen from this package's folder.
const root = "../.."

func TestMain(m *testing.M) {
	if os.Getenv("SIDETRACK_E2E") == "" {
		fmt.Println("skipping: make e2e runs these tests")
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// A terminal's Ctrl-C must not leave a cluster.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	keep := os.Getenv("SIDETRACK_E2E_KEEP") != ""
	began := time.Now()
	err := setUp(ctx, keep)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
	}
	defer func() {
		if kube != nil && !keep {
			if err := cluster.Down(); err != nil {
				fmt.Fprintln(os.Stderr, "e2e:", err)
			}
		}
	}()
	if err != nil {
		return 1
	}
	figure("two nodes, and all images on both", "%.0f s", time.Since(began).Seconds())
	done := make(chan int)
	go func() { done <- m.Run() }()
	select {
	case status := <-done:
		if err := writeFigures(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		return status
	case <-ctx.Done():
		fmt.Fprintln(os.Stderr, "e2e: interrupted")
		return 1
	}
}

// setUp brings a cluster up, makes the images meanwhile, and gives them to the
// nodes.
func setUp(ctx context.Context, keep bool) error {
	// What a library would log comes back as an error as well.
	log.SetLogger(logr.Discard())
	dir, err := os.MkdirTemp("", "sidetrack-e2e-")
	if err != nil {
		return fmt.Errorf("make a folder for images: %w", err)
	}
	defer os.RemoveAll(dir)
	type built struct {
		archives []string
		err      error
	}
	made := make(chan built, 1)
	// The cluster's programs come first: when they have to be built as well, two
	// builds at once only take each other's memory.
	if _, err := cluster.Programs(ctx); err != nil {
		return fmt.Errorf("build the cluster's programs: %w", err)
	}
	go func() {
		archives, err := images.Build(ctx, dir)
		if err == nil {
			var own string
			own, err = ownImages(ctx, dir)
			archives = append(archives, own)
		}
		made <- built{archives, err}
	}()
	err = startCluster(ctx, keep)
	b := <-made
	if err := errors.Join(err, b.err); err != nil {
		return err
	}
	if err := kube.LoadImages(ctx, b.archives...); err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	client, err = ctrlclient.NewWithWatch(kube.Admin(), ctrlclient.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	return nil
}

func startCluster(ctx context.Context, keep bool) (err error) {
	if keep {
		if kube, err = cluster.Open(); err == nil {
			return nil
		}
	}
	mode := os.Getenv("SIDETRACK_E2E_PROXY")
	if mode == "" {
		mode = "mixed"
	}
	kube, err = cluster.Up(ctx, cluster.Options{ProxyMode: mode, Owned: !keep})
	return err
}

// ownImages makes Sidetrack's own images, as a release does.
func ownImages(ctx context.Context, dir string) (string, error) {
	archive := filepath.Join(dir, "sidetrack.tar")
	cmd := exec.CommandContext(ctx, "go", "run", "./deploy/image", "-o", archive)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make Sidetrack's images: %w: %s", err, out)
	}
	return archive, nil
}
