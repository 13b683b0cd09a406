"What `settings.ini` says, told to setuptools"
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_namespace_packages, setup

root = Path(__file__).parent
cfg = ConfigParser(delimiters='=', interpolation=None)
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
stage = dict(enumerate('1 - Planning,2 - Pre-Alpha,3 - Alpha,4 - Beta,5 - Production/Stable'.split(','), 1))
extra = '_requirements'
def absolute(link): return f"{link[1]}({cfg['git_url']}/{'raw' if link[1][0]=='!' else 'blob'}/{cfg['branch']}/"
readme = re.sub(r'(!?\[[^\]]*\])\((?!https?:|#)', absolute, (root/'README.md').read_text(encoding='utf-8'))  # the package index has none of our files

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    long_description=readme, long_description_content_type='text/markdown',
    classifiers=[f"Development Status :: {stage[int(cfg['status'])]}", f"Intended Audience :: {cfg['audience']}",
                 'Intended Audience :: Science/Research', f"Natural Language :: {cfg['language']}", 'Operating System :: OS Independent',
                 'Programming Language :: Python :: 3', *(f"Programming Language :: Python :: 3.{k}" for k in range(10, 14)),
                 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Topic :: Scientific/Engineering :: Image Recognition'],
    project_urls={'Documentation': cfg['doc_host']+cfg['doc_baseurl'], 'Source': cfg['git_url'], 'Issues': cfg['git_url']+'/issues',
                  'Changelog': f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md"},
    packages=find_namespace_packages(include=['ivgr', 'ivgr.*']), include_package_data=True, zip_safe=False,
    python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(),
    extras_require={k[:-len(extra)]: v.split() for k,v in cfg.items() if k.endswith(extra)},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['ivgr=ivgr._modidx:d'],
                  'lmms_eval.models': ['ivgr=ivgr.evaluate.lmms:manifest']},
)
