.PHONY: types
types:
	rm -rf build/types && mkdir -p build/types
	cp -rs $(CURDIR)/recycledb build/types/
	ln -s $(CURDIR)/cli $(CURDIR)/migrations build/types/recycledb/
	MYPYPATH=build/types .venv/bin/mypy -p recycledb
