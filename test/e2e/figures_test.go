// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
)

// figures are what was measured, for whoever reads the end of the output.
var figures struct {
	sync.Mutex
	lines []string
}

func figure(what, format string, args ...any) {
	figures.Lock()
	defer figures.Unlock()
	figures.lines = append(figures.lines, fmt.Sprintf("%-72s %s", what, fmt.Sprintf(format, args...)))
}

// writeFigures writes them to the file that make e2e prints last.
func writeFigures() error {
	figures.Lock()
	defer figures.Unlock()
	text := strings.Join(figures.lines, "\n") + "\n"
	fmt.Print(text)
	file := os.Getenv("SIDETRACK_E2E_FIGURES")
	if file == "" {
		return nil
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the figures: %w", err)
	}
	return nil
}
