// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Accounts is what was used of the machine up to a moment, or between two.
type Accounts struct {
	// Busy is what all cores have done; Stolen what the hypervisor has taken.
	// These count in the kernel's ticks of 10 ms.
	Busy, Stolen time.Duration
	// Processes are the CPU times of the processes watched, all threads of them,
	// to the nanosecond: user, system, and the softirq work that their system
	// calls set off, which includes the receiving side of a local packet.
	Processes []time.Duration
}

// takeAccounts looks at the machine and at some processes.
func takeAccounts(pids []int) (Accounts, error) {
	var a Accounts
	for _, pid := range pids {
		d, err := processTime(pid)
		if err != nil {
			return a, err
		}
		a.Processes = append(a.Processes, d)
	}
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return a, fmt.Errorf("read the cores' times: %w", err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) < 9 || string(f[0]) != "cpu" {
		return a, fmt.Errorf("read the cores' times: %q is not understood", line)
	}
	var ticks [9]int64
	for i := 1; i < len(ticks); i++ {
		if ticks[i], err = strconv.ParseInt(string(f[i]), 10, 64); err != nil {
			return a, fmt.Errorf("read the cores' times: %w", err)
		}
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture that Go knows
	// proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal.
	a.Busy = time.Duration(ticks[1]+ticks[2]+ticks[3]+ticks[6]+ticks[7]) * tick
	a.Stolen = time.Duration(ticks[8]) * tick
	return a, nil
}

// since returns what was used between before and a.
func (a Accounts) since(before Accounts) Accounts {
	d := Accounts{Busy: a.Busy - before.Busy, Stolen: a.Stolen - before.Stolen}
	for i := range a.Processes {
		d.Processes = append(d.Processes, a.Processes[i]-before.Processes[i])
	}
	return d
}

// processTime returns the CPU time of a process and all its threads.
func processTime(pid int) (time.Duration, error) {
	// clock_getcpuclockid(3): the clock's number is made of the process's, and 2
	// stands for the scheduler's own count, which is exact and up to date, unlike
	// /proc/PID/stat.
	const schedulers = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedulers), &ts); err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}
