complete --keep-order --exclusive --command kvmb --arguments "(KVMB_COMPLETE=fish kvmb -- (commandline --current-process --tokenize --cut-at-cursor) (commandline --current-token))"
