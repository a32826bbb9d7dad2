// SPDX-License-Identifier: Apache-2.0

package mcpserver

// tools are all that there are, in the order of the loop. Models choose among
// few better than among many: ten at most.
func tools() []tool {
	return []tool{
		listWorkloads(),
		createSandbox(),
		sendRequest(),
		runTests(),
		compareResponses(),
		explainRouting(),
		sandboxLogs(),
		sandboxStatus(),
		listSandboxes(),
		deleteSandbox(),
	}
}
