// SPDX-License-Identifier: Apache-2.0

// Sweep takes away what killed tests, demos and benchmarks have left behind:
// namespaces, cgroups and mounts of processes that are no more.
package main

import (
	"fmt"
	"os"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func main() {
	status := 0
	for _, prefix := range []string{"sdtest", "sddemo", "sdbench"} {
		removed, err := lab.Sweep(prefix)
		for _, path := range removed {
			fmt.Println("removed", path)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "sweep:", err)
			status = 1
		}
	}
	os.Exit(status)
}
