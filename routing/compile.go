// SPDX-License-Identifier: Apache-2.0

package routing

// Compile turns objects into a table. It takes prev, the table now in force
// (nil at first), to keep ids stable. It never fails as a whole: what cannot be
// honoured is a Problem and left out.
func Compile(in Input, prev *Table) (*Table, []Problem) { panic("later") }
