"""The stages of a study, each a thin rule over a command; what each job runs and needs is in semsynth.study.plan."""

from semsynth.study.plan import DATA, FINAL, GUARD, OPENED, REPORT, SPLIT, SYNTHETIC, TESTED, Plan
from semsynth.study.saved import load_study

PLAN = Plan(load_study("."))  # the working directory is the study's folder


def inputs(rule, *names, last=()):
    """The files that a job needs; those of ``last`` may be younger than what was made of them."""

    def found(wildcards):
        files = PLAN[(rule, *(str(wildcards[name]) for name in names))].inputs
        return [ancient(file) if file in last else file for file in files]

    return found


def command(rule, *names):
    """What a job runs."""
    return lambda wildcards: PLAN[(rule, *(str(wildcards[name]) for name in names))].shell


wildcard_constraints:
    cases=r"\d+u?|all",
    arm=r"[^/]+",
    name=r"[^/]+",
    seed=r"\d+",


localrules:
    all,
    split,
    cases,
    guard,
    open_test,


rule all:
    input:
        REPORT,


# what they read and write is small, and on a cluster not worth a job: localrules above
rule split:
    input:
        inputs("split"),
    output:
        SPLIT,
    log:
        "logs/split.log",
    params:
        run=command("split"),
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


rule cases:
    input:
        inputs("cases", "cases"),
    output:
        "split/{cases}/datalist.json",
    wildcard_constraints:
        cases=r"\d+|all",
    log:
        "logs/cases/{cases}.log",
    params:
        run=command("cases", "cases"),
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


rule guard:
    input:
        inputs("guard"),
    output:
        GUARD,
    log:
        "logs/guard.log",
    params:
        run=command("guard"),
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


rule open_test:
    input:
        inputs("open_test"),
    output:
        OPENED,
    log:
        "logs/open_test.log",
    params:
        run=command("open_test"),
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


rule prepare:
    output:
        DATA,
    log:
        "logs/prepare.log",
    benchmark:
        "times/prepare/all.tsv"
    params:
        run=command("prepare"),
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


rule pseudo:
    input:
        inputs("pseudo", "cases"),
    output:
        "split/{cases}u/datalist.json",
    wildcard_constraints:
        cases=r"\d+",
    log:
        "logs/pseudo/{cases}.log",
    benchmark:
        "times/pseudo/{cases}.tsv"
    params:
        run=command("pseudo", "cases"),
    resources:
        gpu=1,
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


# generators, judges, what draws label maps, networks in a loss
rule training:
    input:
        inputs("training", "cases", "name"),
    output:
        "weights/{cases}/{name}/" + FINAL,
    log:
        "logs/training/{cases}_{name}.log",
    benchmark:
        "times/training/{cases}_{name}.tsv"
    params:
        run=command("training", "cases", "name"),
    resources:
        gpu=1,
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


rule volumes:
    input:
        inputs("volumes", "cases", "arm"),
    output:
        "volumes/{cases}/{arm}/" + SYNTHETIC,
    log:
        "logs/volumes/{cases}_{arm}.log",
    benchmark:
        "times/volumes/{cases}_{arm}.tsv"
    params:
        run=command("volumes", "cases", "arm"),
    resources:
        gpu=1,
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


rule paint:
    input:
        inputs("paint", "cases", "arm"),
    output:
        "painted/{cases}/{arm}/datalist.json",
    log:
        "logs/paint/{cases}_{arm}.log",
    benchmark:
        "times/paint/{cases}_{arm}.tsv"
    params:
        run=command("paint", "cases", "arm"),
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


rule segmenter:
    input:
        inputs("segmenter", "cases", "arm", "seed"),
    output:
        "segmenters/{cases}/{arm}/{seed}/" + FINAL,
    log:
        "logs/segmenter/{cases}_{arm}_{seed}.log",
    benchmark:
        "times/segmenter/{cases}_{arm}_{seed}.tsv"
    params:
        run=command("segmenter", "cases", "arm", "seed"),
    resources:
        gpu=1,
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


# a segmenter that is added later opens the test again, but does not undo the tests of the others
rule test:
    input:
        inputs("test", "cases", "arm", "seed", last=(OPENED,)),
    output:
        "test/{cases}/{arm}/{seed}/" + TESTED,
    log:
        "logs/test/{cases}_{arm}_{seed}.log",
    benchmark:
        "times/test/{cases}_{arm}_{seed}.tsv"
    params:
        run=command("test", "cases", "arm", "seed"),
    resources:
        gpu=1,
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


rule segmentations:
    input:
        inputs("segmentations", "arm", "seed", last=(OPENED,)),
    output:
        "segmentations/{arm}/{seed}/done",
    log:
        "logs/segmentations/{arm}_{seed}.log",
    benchmark:
        "times/segmentations/{arm}_{seed}.tsv"
    params:
        run=command("segmentations", "arm", "seed"),
    resources:
        gpu=1,
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"


rule report:
    input:
        inputs("report"),
    output:
        REPORT,
    log:
        "logs/report.log",
    params:
        run=command("report"),
    shell:
        "{{ {params.run}; }} >> {log} 2>&1"
