// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// TB is what this package needs of a *testing.T.
type TB interface {
	Helper()
	Cleanup(func())
	Context() context.Context
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// M is what this package needs of a *testing.M.
type M interface{ Run() int }

// planePrefix is the start of the names of control planes' folders; the process
// id follows, so that a sweep finds those of processes that are no more.
const planePrefix = "sdplane"

var planes atomic.Int64

// Without nodes nobody makes service accounts, which the admission plugin wants for
// every pod, and nobody needs the API server as a Service.
var loneFlags = []string{"--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none", "--advertise-address=192.0.2.1"}

// NewControlPlane starts a control plane without nodes; the caller closes it. It
// does not outlive the calling process, however that ends.
func NewControlPlane(ctx context.Context) (*ControlPlane, error) {
	programs, err := Programs(ctx, planePrograms...)
	if err != nil {
		return nil, err
	}
	var last error
	// Somebody else may take a port that was free.
	for range 3 {
		dir := fmt.Sprintf("%s/%s-%d-%d", os.TempDir(), planePrefix, os.Getpid(), planes.Add(1))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the control plane's folder: %w", err)
		}
		c, err := startPlane(ctx, programs, planeOptions{dir: dir, address: "127.0.0.1", dieWithUs: true, flags: loneFlags})
		if err == nil {
			return c, nil
		}
		last = errors.Join(err, os.RemoveAll(dir))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

// Close stops a control plane of NewControlPlane and removes all of it.
func (c *ControlPlane) Close() error {
	if err := c.stop(); err != nil {
		return err
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		return fmt.Errorf("remove the control plane's folder: %w", err)
	}
	return nil
}

// StartControlPlane starts a control plane without nodes that lasts as long as
// the test.
func StartControlPlane(tb TB) *ControlPlane {
	tb.Helper()
	// Building the programs is included.
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Minute)
	defer cancel()
	c, err := NewControlPlane(ctx)
	if err != nil {
		tb.Fatalf("start a control plane: %v", err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Errorf("stop the control plane: %v", err)
		}
	})
	return c
}

// WithControlPlane is for TestMain: it runs the tests with *c set, and returns
// the exit status.
func WithControlPlane(m M, c **ControlPlane) int {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	plane, err := NewControlPlane(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start a control plane:", err)
		return 1
	}
	*c = plane
	status := m.Run()
	if err := plane.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the control plane:", err)
		return 1
	}
	return status
}
