"""The installed commands of what lies beside adco/ in the repository, and inside it in a wheel."""


def pretrain() -> int:
    from main_adco import main  # here, so that Ctrl-C is quiet from the first import on

    return main()


def probe() -> int:
    from lincls import main

    return main()


def voc() -> int:
    from VOC_CLF.main import main

    return main()
